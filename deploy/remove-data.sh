#!/usr/bin/env bash
# Removes the data directory of `certmill dev`, keys included, unless it is in use.
set -euo pipefail
dir=${1:?usage: remove-data.sh <data directory>}
[ -f "$dir/lock" ] || { echo "$dir is not a data directory of certmill" >&2; exit 1; }
exec 9<>"$dir/lock"
flock -n 9 || { echo "$dir is in use: stop certmill dev first" >&2; exit 1; }
# As root, PostgreSQL's part may lie elsewhere, behind a link.
if [ -L "$dir/postgresql" ]; then
	target=$(readlink "$dir/postgresql")
	case "$target" in
	/var/lib/certmill/*/data) rm -rf -- "$(dirname "$target")" ;;
	esac
fi
rm -rf -- "$dir"
