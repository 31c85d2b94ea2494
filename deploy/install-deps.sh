#!/usr/bin/env bash
# Installs the programs that certmill needs on one machine and that are missing; with
# the word "test", also those that its tests ask for an opinion. On Debian and Ubuntu it
# uses apt; elsewhere it prints what to install. With nothing missing it is silent and
# quick. It starts no service: certmill runs its own servers on its own data.
set -euo pipefail

have() {
	command -v "$1" >/dev/null 2>&1 && return 0
	# Debian keeps PostgreSQL's server programs and some others off PATH.
	compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null && return 0
	[ -x "/usr/sbin/$1" ]
}

missing=()
need() { # program package
	have "$1" || missing+=("$2")
}
need softhsm2-util softhsm2
need initdb postgresql
need redis-server redis-server
need openssl openssl
need curl curl
need cc gcc
[ "$(uname)" != Linux ] || need ip iproute2
[ -e /usr/include/stdio.h ] || [ "$(uname)" = Darwin ] || missing+=(libc6-dev)
if [ "${1:-}" = test ]; then
	need certtool gnutls-bin
	need nginx nginx-light
	need haproxy haproxy
	need pki strongswan-pki
	need systemd-analyze systemd
	need promtool prometheus
	need chromium chromium
	need prometheus prometheus
	need promtool prometheus
	compgen -G "/usr/lib/*/libsoftokn3.so" >/dev/null || missing+=(libnss3)
	# What lets strongSwan's pki fetch CRLs over HTTP.
	compgen -G "/usr/lib/ipsec/plugins/libstrongswan-curl.so" >/dev/null ||
		missing+=(libstrongswan-standard-plugins libstrongswan-extra-plugins)
fi

[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	cat >&2 <<-TEXT
	certmill needs programs that are not installed here. By their Debian names: ${missing[*]}
	  Fedora: dnf install softhsm postgresql-server redis openssl curl gcc   (tests: gnutls-utils nginx haproxy strongswan nss)
	  macOS:  brew install softhsm postgresql@15 redis openssl curl          (tests: gnutls nginx haproxy)
	TEXT
	exit 1
fi

echo "installing: ${missing[*]}"
sudo=()
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo >/dev/null 2>&1 || { echo "run as root: apt-get install -y ${missing[*]}" >&2; exit 1; }
	sudo=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Debian starts a server when its package is installed, unless this program forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
	"${sudo[@]}" chmod 755 "$policy"
	trap 'rm -f "$log"; "${sudo[@]}" rm -f "$policy"' EXIT
fi
if ! { "${sudo[@]}" apt-get update -q && "${sudo[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "installing ${missing[*]} failed" >&2
	exit 1
fi
