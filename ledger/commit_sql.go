package ledger

// The commit of a batch is one statement, so one transaction and one round trip:
// the request keys go in first, and of the certificates only those whose key was
// free. It returns the serials that are now in the ledger because of this run; for
// the others Lookup says what stands under their keys.
//
// It never selects from the requests that other commits are inserting at the same
// moment: under SERIALIZABLE each such read would lock index pages and make innocent
// commits fail. ON CONFLICT looks without a lock. On a run after a lost answer the
// entry's own serial stands under its key already: it counts as taken, even past its
// reuse time, so the serial is not inserted twice.
const (
	commitInput = `
WITH input AS (
	SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::timestamptz[],
		$5::timestamptz[], $6::timestamptz[], $7::int4[], $8::int2[], $9::bytea[],
		$10::text[], $11::text[], $12::text[], $13::text[],
		$14::text[], $15::text[], $16::text[], $17::text[], $18::bytea[])
	AS t(key, serial, csr, reuse_until,
		not_before, not_after, issuer, revocation, spki,
		profile, profile_version, name, more_names,
		caller, owner, service, environment, der)
), `

	// On PostgreSQL the keys of the generation before still stand. Nobody writes that
	// partition any more, so reading it makes no conflicts, but for the moment of the
	// turn itself, where it makes the one that is wanted.
	commitClaimPostgres = `held AS (
	SELECT r.key FROM requests r
	WHERE r.gen = (SELECT ((gen + 2) % 3)::int2 FROM ledger_state WHERE id = 1)
		AND r.key = ANY($1::bytea[]) AND (r.expires_at > $19::timestamptz OR r.serial = ANY($2::bytea[]))
), won AS (
	INSERT INTO requests (gen, key, serial, csr, expires_at)
	SELECT (SELECT gen FROM ledger_state WHERE id = 1), key, serial, csr, reuse_until FROM input
	WHERE NOT EXISTS (SELECT 1 FROM held WHERE held.key = input.key)`

	commitClaimCockroach = `won AS (
	INSERT INTO requests (gen, key, serial, csr, expires_at)
	SELECT 0, key, serial, csr, reuse_until FROM input`

	commitStore = `
	ON CONFLICT (key, gen) DO UPDATE
		SET serial = excluded.serial, csr = excluded.csr, expires_at = excluded.expires_at
		WHERE requests.expires_at <= $19::timestamptz AND requests.serial <> excluded.serial
	RETURNING serial
), stored AS (
	INSERT INTO certificates (serial, not_before, not_after, issuer, revocation, spki,
		profile, profile_version, name, more_names, caller, owner, service, environment, der)
	SELECT i.serial, i.not_before, i.not_after, i.issuer, i.revocation, i.spki,
		i.profile, i.profile_version, i.name, i.more_names, i.caller, i.owner, i.service, i.environment, i.der
	FROM input i JOIN won w ON w.serial = i.serial
	RETURNING serial
)`

	// Most batches have no certificate with a second name, and go without this part.
	commitNames = `, named AS (
	INSERT INTO certificate_names (name, serial, not_after)
	SELECT n.name, n.serial, n.not_after
	FROM unnest($20::text[], $21::bytea[], $22::timestamptz[]) AS n(name, serial, not_after)
	JOIN won w ON w.serial = n.serial
	RETURNING serial
)`

	commitAnswer = `
SELECT serial FROM won`
)

// commitStatement is a form of the commit, with the name under which connections keep it.
type commitStatement struct{ name, sql string }

// commitStatements has them by whether certificates of the batch have a second name.
var commitStatements = map[dialect]map[bool]commitStatement{
	postgres:  commitsOf(commitInput + commitClaimPostgres + commitStore),
	cockroach: commitsOf(commitInput + commitClaimCockroach + commitStore),
}

func commitsOf(store string) map[bool]commitStatement {
	return map[bool]commitStatement{
		false: {"certmill_commit", store + commitAnswer},
		true:  {"certmill_commit_names", store + commitNames + commitAnswer},
	}
}
