#!/usr/bin/env bash
# Backs the ledger up and restores it. See restore.md for when and what else.
#
#   restore.sh backup  FILE
#   restore.sh restore FILE
#
# The database is that of LEDGER_URL (postgres://user@host:port/database?…), its password
# that of LEDGER_PASSWORD_FILE. restore also empties the Redis of REDIS_URL
# (redis://host:port), with the password of REDIS_PASSWORD_FILE, and leaves EPOCH_GAP
# epochs out (default 10000). CERTMILL names the program (default: certmill on PATH).
#
# Before restore every gateway, signer, presigner, and whatever else writes to the
# ledger must be stopped. It asks the database, and refuses while one is connected.
set -euo pipefail

usage() { sed -n '2,6p' "$0" | cut -c3- >&2; exit 2; }
[ $# -eq 2 ] || usage
action=$1 file=$2
: "${LEDGER_URL:?the URL of the ledger, as ledger.url}"
certmill=${CERTMILL:-certmill}
if [ -n "${LEDGER_PASSWORD_FILE:-}" ]; then
	PGPASSWORD=$(cat "$LEDGER_PASSWORD_FILE")
	export PGPASSWORD
fi
plain=${LEDGER_URL%%\?*}
database=${plain##*/}
on() { echo "${plain%/*}/$1${LEDGER_URL#"$plain"}"; } # the URL of another database
admin=$(on postgres)
restoring=$(on "${database}_restoring")
step() { echo "== $*"; }
query() { psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 "$@"; }

case $action in
backup)
	step "1. one consistent picture of the ledger into $file"
	# Written aside: a backup that was cut short must not look like one.
	pg_dump --format=custom --file="$file.part" "$LEDGER_URL"
	mv "$file.part" "$file"
	pg_restore --list "$file" >/dev/null
	;;
restore)
	[ -s "$file" ] || { echo "$file is no backup" >&2; exit 1; }
	step "1. nobody works on the ledger"
	busy=$(query --command="SELECT count(*) FROM pg_stat_activity WHERE datname = '$database' AND application_name = 'certmill'" "$admin")
	if [ "$busy" != 0 ]; then
		echo "$busy sessions of certmill are connected: stop every role first" >&2
		exit 1
	fi
	step "2. the backup into a database of its own, so that a failure changes nothing"
	query --command="DROP DATABASE IF EXISTS \"${database}_restoring\"" --command="CREATE DATABASE \"${database}_restoring\"" "$admin" >/dev/null
	pg_restore --exit-on-error --no-owner --dbname="$restoring" "$file"
	step "3. its schema for this program, and no epoch or CRL number again"
	there=(--url "$restoring")
	[ -z "${LEDGER_PASSWORD_FILE:-}" ] || there+=(--password-file "$LEDGER_PASSWORD_FILE")
	"$certmill" ledger migrate "${there[@]}"
	"$certmill" ledger restored --gap "${EPOCH_GAP:-10000}" "${there[@]}"
	step "4. in the place of the lost one, which is kept as ${database}_lost"
	query --command="DROP DATABASE IF EXISTS \"${database}_lost\" WITH (FORCE)" "$admin"
	if [ "$(query --command="SELECT count(*) FROM pg_database WHERE datname = '$database'" "$admin")" = 1 ]; then
		query --command="ALTER DATABASE \"$database\" RENAME TO \"${database}_lost\"" "$admin"
	fi
	query --command="ALTER DATABASE \"${database}_restoring\" RENAME TO \"$database\"" "$admin"
	if [ -n "${REDIS_URL:-}" ]; then
		step "5. Redis forgets the answers; presigners make them again from the ledger"
		[ -z "${REDIS_PASSWORD_FILE:-}" ] || { REDISCLI_AUTH=$(cat "$REDIS_PASSWORD_FILE"); export REDISCLI_AUTH; }
		redis-cli -u "$REDIS_URL" FLUSHALL | grep -qx OK
	fi
	step "done: start the presigners and responders, then the signers, then the gateways"
	;;
*) usage ;;
esac
