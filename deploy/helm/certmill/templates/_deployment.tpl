{{- /* A role as a Deployment. Takes root, part, image, args, env, ports, secrets, hsm, profiles. */}}
{{- define "certmill.deployment" -}}
{{- $v := index .root.Values .part -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "certmill.name" . }}
  labels: {{- include "certmill.labels" . | nindent 4 }}
spec:
  {{- if not .scaled }}
  replicas: {{ $v.replicas }}
  {{- end }}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  minReadySeconds: 5
  selector:
    matchLabels: {{- include "certmill.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "certmill.labels" . | nindent 8 }}
      annotations:
        checksum/config: {{ include (print .root.Template.BasePath "/config.yaml") .root | sha256sum }}
        {{- with .root.Values.podAnnotations }}{{- toYaml . | nindent 8 }}{{- end }}
    spec:
      serviceAccountName: {{ include "certmill.name" . }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add 45 (int ($v.shutdownDelaySeconds | default 0)) }}
      {{- with .root.Values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext: {{- include "certmill.podSecurity" . | nindent 8 }}
      {{- include "certmill.spread" . | nindent 6 }}
      {{- if .hsm }}
      {{- with .root.Values.hsm.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.hsm.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      containers:
        - name: {{ .part }}
          {{- include "certmill.image" . | nindent 10 }}
          args: {{ toJson .args }}
          workingDir: /etc/certmill
          env:
            - {name: {{ printf "CERTMILL_%s_TELEMETRY_LISTEN" (upper .part) }}, value: ":9090"}
            {{- range $name, $value := .env }}
            - {name: {{ $name }}, value: {{ $value | quote }}}
            {{- end }}
            {{- if .ledger }}{{- include "certmill.ledgerEnv" .root | nindent 12 }}{{- end }}
            {{- if .hsm }}
            - {name: SOFTHSM2_CONF, value: softhsm2.conf}
            {{- with .root.Values.hsm.env }}{{- toYaml . | nindent 12 }}{{- end }}
            {{- end }}
            {{- with $v.env }}{{- toYaml . | nindent 12 }}{{- end }}
          ports:
            - {name: operator, containerPort: 9090}
            {{- range $name, $port := .ports }}
            - {name: {{ $name }}, containerPort: {{ $port }}}
            {{- end }}
          {{- include "certmill.probes" . | nindent 10 }}
          resources: {{- toYaml $v.resources | nindent 12 }}
          securityContext: {{- include "certmill.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: config, mountPath: {{ printf "/etc/certmill/%s.yaml" .part }}, subPath: {{ .part }}.yaml, readOnly: true}
            - {name: secrets, mountPath: {{ printf "/etc/certmill/secrets/%s" .part }}, readOnly: true}
            {{- if .profiles }}
            - {name: profiles, mountPath: /etc/certmill/profiles, readOnly: true}
            {{- end }}
            {{- if eq .part "gateway" }}
            - {name: public, mountPath: /etc/certmill/public, readOnly: true}
            {{- end }}
            {{- if .hsm }}
            - {name: config, mountPath: /etc/certmill/softhsm2.conf, subPath: softhsm2.conf, readOnly: true}
            {{- with .root.Values.hsm.volumeMounts }}{{- toYaml . | nindent 12 }}{{- end }}
            {{- end }}
      volumes:
        - name: config
          configMap: {name: {{ include "certmill.name" (dict "root" .root "part" "config") }}}
        - name: secrets
          secret: {secretName: {{ index .root.Values.secrets .part }}, defaultMode: 0440}
        {{- if .profiles }}
        - name: profiles
          configMap: {name: {{ include "certmill.name" (dict "root" .root "part" "profiles") }}}
        {{- end }}
        {{- if eq .part "gateway" }}
        - name: public
          secret:
            secretName: {{ .root.Values.secrets.gatewayTLS }}
            defaultMode: 0440
            items: [{key: tls.crt, path: gateway.pem}, {key: tls.key, path: gateway.key}]
        {{- end }}
        {{- if .hsm }}{{- with .root.Values.hsm.volumes }}{{- toYaml . | nindent 8 }}{{- end }}{{- end }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "certmill.name" . }}
  labels: {{- include "certmill.labels" . | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "certmill.name" . }}
  labels: {{- include "certmill.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "certmill.selector" . | nindent 6 }}
{{- end }}

{{- /* A role's Service. Takes root, part, ports. */}}
{{- define "certmill.service" -}}
{{- $v := index .root.Values .part -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "certmill.name" . }}
  labels: {{- include "certmill.labels" . | nindent 4 }}
  {{- with $v.service.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $v.service.type }}
  selector: {{- include "certmill.selector" . | nindent 4 }}
  ports:
    {{- range $name, $port := .ports }}
    - {name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }}}
    {{- end }}
{{- end }}
