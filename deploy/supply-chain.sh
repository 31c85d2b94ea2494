#!/usr/bin/env bash
# What we ship and what is known against it.
#   supply-chain.sh vuln        known vulnerabilities that the code reaches (govulncheck); exit 1 on a finding
#   supply-chain.sh sbom FILE   every module in the binary bin/certmill, as CycloneDX JSON
# GOVULNDB names another vulnerability database than https://vuln.go.dev, file:///… too.
# A tool or a database that cannot be had is said plainly and is no finding: exit 0.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=bin/tools

# tool NAME PACKAGE builds a tool of internal/tools.
tool() {
	mkdir -p "$tools"
	go build -modfile=internal/tools/go.mod -o "$tools/$1" "$2" || {
		echo "NOT DONE: $1 cannot be built here (is the module proxy out of reach?)" >&2
		exit 0
	}
}

vuln() {
	local db=${GOVULNDB:-https://vuln.go.dev} status=0
	case $db in
	file://*) [ -e "${db#file://}/index/db.json" ] || { echo "NOT CHECKED: there is no vulnerability database at $db" >&2; exit 0; } ;;
	*) curl -sSf -m 10 -o /dev/null "$db/index/db.json" || { echo "NOT CHECKED for vulnerabilities: $db cannot be reached from here" >&2; exit 0; } ;;
	esac
	tool govulncheck golang.org/x/vuln/cmd/govulncheck
	"$tools/govulncheck" -db "$db" ./... || status=$?
	case $status in
	0) echo "no known vulnerability is reached ($db)" ;;
	3) exit 1 ;; # findings; they stand above
	*) echo "NOT CHECKED for vulnerabilities: govulncheck ended with $status" >&2 ;;
	esac
}

sbom() {
	[ -x bin/certmill ] || { echo "there is no bin/certmill: make build" >&2; exit 1; }
	tool cyclonedx-gomod github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
	"$tools/cyclonedx-gomod" bin -json -std -version "$(git describe --tags --always --dirty 2>/dev/null || echo dev)" -output "$1" bin/certmill
	echo "$1: $(grep -c '"type": "library"' "$1") modules"
}

case ${1:-} in
vuln) vuln ;;
sbom) sbom "${2:?the file to write}" ;;
*) echo "usage: $0 vuln | sbom FILE" >&2; exit 2 ;;
esac
