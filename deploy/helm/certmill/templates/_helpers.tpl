{{- define "certmill.name" -}}{{ printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" }}{{- end }}

{{- define "certmill.selector" -}}
app.kubernetes.io/name: certmill
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "certmill.labels" -}}
{{ include "certmill.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "certmill.image" -}}
{{- $i := index .root.Values.image .image -}}
image: {{ printf "%s:%s" $i.repository ($i.tag | default .root.Chart.AppVersion) }}
imagePullPolicy: {{ $i.pullPolicy }}
{{- end }}

{{- define "certmill.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
# The secrets' files are for this group.
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "certmill.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "certmill.ledgerEnv" -}}
- {name: PGHOST, value: {{ .Values.ledger.hosts | quote }}}
- {name: PGPORT, value: {{ .Values.ledger.port | quote }}}
{{- end }}

{{- /* The probes of a role: alive while its process answers, ready while it can work. */}}
{{- define "certmill.probes" -}}
startupProbe: {httpGet: {path: /healthz, port: operator}, periodSeconds: 2, failureThreshold: 60}
livenessProbe: {httpGet: {path: /healthz, port: operator}, periodSeconds: 10, timeoutSeconds: 3, failureThreshold: 3}
readinessProbe: {httpGet: {path: /readyz, port: operator}, periodSeconds: 2, timeoutSeconds: 2, failureThreshold: 2}
{{- end }}

{{- /* One pod is spread from the next over zones and nodes. */}}
{{- define "certmill.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "certmill.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "certmill.selector" . | nindent 8 }}
{{- end }}
