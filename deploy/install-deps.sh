#!/usr/bin/env bash
# Installs the programs that certmill needs on one machine and that are missing. On
# Debian and Ubuntu it uses apt; elsewhere it prints what to install. With nothing
# missing it is silent and quick.
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
need certtool gnutls-bin
[ -e /usr/include/stdio.h ] || [ "$(uname)" = Darwin ] || missing+=(libc6-dev)

[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	cat >&2 <<-TEXT
	certmill needs programs that are not installed here. By their Debian names: ${missing[*]}
	  Fedora: dnf install softhsm postgresql-server redis openssl curl gcc gnutls-utils
	  macOS:  brew install softhsm postgresql@15 redis openssl curl gnutls
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
if ! { "${sudo[@]}" apt-get update -q && "${sudo[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "installing ${missing[*]} failed" >&2
	exit 1
fi
