-- +goose NO TRANSACTION
-- The ledger on CockroachDB 24.1 and later. Row-level TTL takes the place of the
-- partitions of PostgreSQL, and a hash goes before keys that come in time order, so
-- that no range is hot.

-- +goose Up

-- Issuers and signers ----------------------------------------------------------

CREATE SEQUENCE IF NOT EXISTS issuer_ids;
CREATE TABLE IF NOT EXISTS issuers (
    id          INT4 NOT NULL DEFAULT nextval('issuer_ids') PRIMARY KEY,
    name        STRING NOT NULL,
    state       STRING NOT NULL CHECK (state IN ('active', 'retired')),
    der         BYTES NOT NULL,
    fingerprint BYTES NOT NULL UNIQUE, -- SHA-256 of der
    chain       BYTES[] NOT NULL,
    key_uri     STRING NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    UNIQUE INDEX issuers_one_active (name) WHERE state = 'active'
);

CREATE SEQUENCE IF NOT EXISTS ocsp_signer_ids;
CREATE TABLE IF NOT EXISTS ocsp_signers (
    id          INT4 NOT NULL DEFAULT nextval('ocsp_signer_ids') PRIMARY KEY,
    issuer      INT4 NOT NULL REFERENCES issuers (id),
    der         BYTES NOT NULL,
    fingerprint BYTES NOT NULL UNIQUE,
    key_uri     STRING NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL
);

CREATE SEQUENCE IF NOT EXISTS signer_epoch_ids;
CREATE TABLE IF NOT EXISTS signer_epochs (
    id          INT4 NOT NULL DEFAULT nextval('signer_epoch_ids') PRIMARY KEY, -- stands in every serial
    signer      STRING NOT NULL,
    issuer      INT4 NOT NULL,
    token       STRING NOT NULL,
    started_at  TIMESTAMPTZ NOT NULL,
    signatures  INT8 NOT NULL DEFAULT 0,
    final       BOOL NOT NULL DEFAULT false,
    reported_at TIMESTAMPTZ
);

-- Requests: which certificate a request key has made. One generation, gen = 0: the
-- TTL takes the rows away. The hour keeps a row that a late retry may ask for.

CREATE TABLE IF NOT EXISTS requests (
    gen        INT2 NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    key        BYTES NOT NULL,
    serial     BYTES NOT NULL,
    csr        BYTES NOT NULL, -- SHA-256
    PRIMARY KEY (key, gen)
) WITH (
    ttl_expiration_expression = '((expires_at AT TIME ZONE ''UTC'') + INTERVAL ''1 hour'') AT TIME ZONE ''UTC''',
    ttl_job_cron = '@hourly'
);

-- Certificates: the serial begins with the expiry bucket. The interval is ledger.Grace.

CREATE TABLE IF NOT EXISTS certificates (
    serial          BYTES NOT NULL,
    not_before      TIMESTAMPTZ NOT NULL,
    not_after       TIMESTAMPTZ NOT NULL,
    issuer          INT4 NOT NULL,
    revocation      INT2 NOT NULL, -- bits: 1 OCSP, 2 CRL
    spki            BYTES NOT NULL, -- SHA-256
    profile         STRING NOT NULL,
    profile_version STRING NOT NULL,
    name            STRING NOT NULL, -- the first subject alternative name
    more_names      STRING,          -- the others, one a line; NULL where there are none
    caller          STRING NOT NULL,
    owner           STRING NOT NULL,
    service         STRING NOT NULL,
    environment     STRING NOT NULL,
    der             BYTES NOT NULL,
    PRIMARY KEY (serial) USING HASH,
    INDEX certificates_name (name, serial),
    INDEX certificates_caller (caller, serial),
    INDEX certificates_owner (owner, serial) WHERE owner <> ''
) WITH (
    ttl_expiration_expression = '((not_after AT TIME ZONE ''UTC'') + INTERVAL ''72 hours'') AT TIME ZONE ''UTC''',
    ttl_job_cron = '@hourly'
);

-- Every name of a certificate but the first. It has the certificate's end for its TTL.
CREATE TABLE IF NOT EXISTS certificate_names (
    name      STRING NOT NULL,
    serial    BYTES NOT NULL,
    not_after TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (name, serial)
) WITH (
    ttl_expiration_expression = '((not_after AT TIME ZONE ''UTC'') + INTERVAL ''72 hours'') AT TIME ZONE ''UTC''',
    ttl_job_cron = '@hourly'
);

CREATE TABLE IF NOT EXISTS revocations (
    serial     BYTES PRIMARY KEY,
    seq        INT8 NOT NULL UNIQUE, -- audit.seq of the revocation
    revoked_at TIMESTAMPTZ NOT NULL,
    not_after  TIMESTAMPTZ NOT NULL,
    issuer     INT4 NOT NULL,
    reason     INT2 NOT NULL,
    services   INT2 NOT NULL,
    revoked_by STRING NOT NULL,
    comment    STRING NOT NULL,
    -- The revocations of a shard: a range of the last two octets of the serial.
    INDEX revocations_crl (issuer, substr(serial, 15, 2), serial)
);

-- CRLs -------------------------------------------------------------------------

-- Every distribution point that certificates may name. Rows stay, since certificates do.
CREATE SEQUENCE IF NOT EXISTS crl_set_ids;
CREATE TABLE IF NOT EXISTS crl_sets (
    id         INT4 NOT NULL DEFAULT nextval('crl_set_ids') PRIMARY KEY,
    issuer     INT4 NOT NULL REFERENCES issuers (id),
    url        STRING NOT NULL, -- with {shard}
    shards     INT4 NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    UNIQUE (url, shards)
);

-- One row for each CRL: who makes it and the last one made.
CREATE TABLE IF NOT EXISTS crls (
    crl_set      INT4 NOT NULL REFERENCES crl_sets (id),
    shard        INT4 NOT NULL,
    reserved     INT8 NOT NULL DEFAULT 0, -- the last CRLNumber given out
    maker        STRING NOT NULL DEFAULT '',
    claimed_till TIMESTAMPTZ,             -- NULL: nobody makes it
    number       INT8 NOT NULL DEFAULT 0, -- the CRLNumber published; all below describe it
    seq          INT8 NOT NULL DEFAULT 0, -- revocations.seq up to which it is complete
    this_update  TIMESTAMPTZ,
    next_update  TIMESTAMPTZ,
    scheduled_at TIMESTAMPTZ,             -- this_update of the last that was made on schedule
    entries      INT8 NOT NULL DEFAULT 0,
    bytes        INT8 NOT NULL DEFAULT 0,
    chunks       INT4 NOT NULL DEFAULT 0,
    digest       BYTES,                   -- SHA-256 over tbsCertList and what follows it
    PRIMARY KEY (crl_set, shard)
);

-- The DER in pieces, so that no CRL is ever held in memory whole.
CREATE TABLE IF NOT EXISTS crl_chunks (
    crl_set INT4 NOT NULL,
    shard   INT4 NOT NULL,
    number  INT8 NOT NULL,
    chunk   INT4 NOT NULL,
    der     BYTES NOT NULL,
    PRIMARY KEY (crl_set, shard, number, chunk)
);

-- Orders ------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS orders (
    id              UUID PRIMARY KEY,
    request_key     BYTES UNIQUE, -- NULL once the key has been given to a later order
    csr             BYTES NOT NULL,
    reuse_until     TIMESTAMPTZ NOT NULL,
    caller          STRING NOT NULL,
    request_id      STRING NOT NULL,
    request         BYTES NOT NULL,
    state           STRING NOT NULL CHECK (state IN ('pending', 'issued', 'failed')),
    serial          BYTES,
    failure         BYTES,
    created_at      TIMESTAMPTZ NOT NULL,
    attempts        INT4 NOT NULL DEFAULT 0,
    next_attempt_at TIMESTAMPTZ NOT NULL,
    expires_at      TIMESTAMPTZ, -- set when the order is settled
    INDEX orders_pending (next_attempt_at) USING HASH WHERE state = 'pending',
    INDEX orders_expiring (expires_at) USING HASH WHERE expires_at IS NOT NULL
);

-- Enrollment tokens -------------------------------------------------------------

CREATE TABLE IF NOT EXISTS enrollment_tokens (
    id         UUID PRIMARY KEY,
    hash       BYTES NOT NULL UNIQUE,
    profile    STRING NOT NULL,
    names      STRING[] NOT NULL,
    uses       INT4 NOT NULL CHECK (uses > 0),
    used       INT4 NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND uses),
    expires_at TIMESTAMPTZ NOT NULL,
    owner      STRING NOT NULL,
    created_by STRING NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

-- One row for each request that a token has admitted, so that a retry costs no use.
CREATE TABLE IF NOT EXISTS token_uses (
    token UUID NOT NULL REFERENCES enrollment_tokens (id) ON DELETE CASCADE,
    key   BYTES NOT NULL,
    PRIMARY KEY (token, key)
);

-- Audit: each row's hash covers the row before. CockroachDB 24.1 has no triggers:
-- grant the services' role SELECT and INSERT on audit, not UPDATE or DELETE.

CREATE TABLE IF NOT EXISTS audit (
    seq         INT8 PRIMARY KEY,
    recorded_at TIMESTAMPTZ NOT NULL,
    actor       STRING NOT NULL,
    action      STRING NOT NULL,
    subject     STRING NOT NULL,
    detail      STRING NOT NULL,
    hash        BYTES NOT NULL
);

CREATE TABLE IF NOT EXISTS audit_head (
    id   INT2 PRIMARY KEY CHECK (id = 1),
    seq  INT8 NOT NULL,
    hash BYTES NOT NULL
);
INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, decode(repeat('00', 32), 'hex'))
    ON CONFLICT (id) DO NOTHING;

-- +goose Down
DROP TABLE IF EXISTS audit, audit_head, token_uses, enrollment_tokens, orders, crl_chunks, crls, crl_sets, revocations,
    certificate_names, certificates, requests, signer_epochs, ocsp_signers, issuers;
DROP SEQUENCE IF EXISTS crl_set_ids, signer_epoch_ids, ocsp_signer_ids, issuer_ids;
