-- The ledger on PostgreSQL 15 and later. Tables that grow with the fleet are
-- partitioned, so that what has expired is dropped and never deleted row by row.

-- +goose Up

-- Issuers and signers ----------------------------------------------------------

CREATE TABLE issuers (
    id          int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    state       text NOT NULL CHECK (state IN ('active', 'retired')),
    der         bytea NOT NULL,
    fingerprint bytea NOT NULL UNIQUE, -- SHA-256 of der
    chain       bytea[] NOT NULL,
    key_uri     text NOT NULL,
    created_at  timestamptz NOT NULL
);
CREATE UNIQUE INDEX issuers_one_active ON issuers (name) WHERE state = 'active';

CREATE TABLE ocsp_signers (
    id          int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    issuer      int4 NOT NULL REFERENCES issuers (id),
    der         bytea NOT NULL,
    fingerprint bytea NOT NULL UNIQUE,
    key_uri     text NOT NULL,
    created_at  timestamptz NOT NULL
);

CREATE TABLE signer_epochs (
    id          int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- stands in every serial
    signer      text NOT NULL,
    issuer      int4 NOT NULL,
    token       text NOT NULL,
    started_at  timestamptz NOT NULL,
    signatures  int8 NOT NULL DEFAULT 0,
    final       bool NOT NULL DEFAULT false,
    reported_at timestamptz
);

-- Requests: which certificate a request key has made ---------------------------
--
-- Three generations take turns: the current one is written, the one before is
-- read, the third is empty. Commits read ledger_state and Maintain writes it, both
-- SERIALIZABLE, so no commit straddles a turn.

CREATE TABLE ledger_state (
    id    int2 PRIMARY KEY CHECK (id = 1),
    gen   int2 NOT NULL CHECK (gen IN (0, 1, 2)),
    since timestamptz NOT NULL
);
INSERT INTO ledger_state VALUES (1, 0, now());

CREATE TABLE requests (
    gen        int2 NOT NULL,
    expires_at timestamptz NOT NULL,
    key        bytea NOT NULL,
    serial     bytea NOT NULL,
    csr        bytea NOT NULL, -- SHA-256
    PRIMARY KEY (key, gen)
) PARTITION BY LIST (gen);
CREATE TABLE requests_0 PARTITION OF requests FOR VALUES IN (0);
CREATE TABLE requests_1 PARTITION OF requests FOR VALUES IN (1);
CREATE TABLE requests_2 PARTITION OF requests FOR VALUES IN (2);

-- Certificates: the serial begins with the expiry bucket ------------------------

CREATE TABLE certificates (
    not_before      timestamptz NOT NULL,
    not_after       timestamptz NOT NULL,
    issuer          int4 NOT NULL,
    revocation      int2 NOT NULL, -- bits: 1 OCSP, 2 CRL
    serial          bytea PRIMARY KEY,
    spki            bytea NOT NULL, -- SHA-256
    profile         text NOT NULL,
    profile_version text NOT NULL,
    name            text NOT NULL, -- the first subject alternative name
    more_names      text,          -- the others, one a line; NULL where there are none
    caller          text NOT NULL,
    owner           text NOT NULL,
    service         text NOT NULL,
    environment     text NOT NULL,
    der             bytea NOT NULL
) PARTITION BY RANGE (serial);
CREATE INDEX certificates_name ON certificates (name, serial);
CREATE INDEX certificates_caller ON certificates (caller, serial);
CREATE INDEX certificates_owner ON certificates (owner, serial) WHERE owner <> '';
-- What no partition has been made for; Maintain moves it where it belongs.
CREATE TABLE certificates_rest PARTITION OF certificates DEFAULT;

-- Every name of a certificate but the first.
CREATE TABLE certificate_names (
    name   text NOT NULL,
    serial bytea NOT NULL,
    not_after timestamptz NOT NULL,
    PRIMARY KEY (name, serial)
) PARTITION BY RANGE (serial);
CREATE TABLE certificate_names_rest PARTITION OF certificate_names DEFAULT;

CREATE TABLE revocations (
    serial     bytea PRIMARY KEY,
    seq        int8 NOT NULL UNIQUE, -- audit.seq of the revocation
    revoked_at timestamptz NOT NULL,
    not_after  timestamptz NOT NULL,
    issuer     int4 NOT NULL,
    reason     int2 NOT NULL,
    services   int2 NOT NULL,
    revoked_by text NOT NULL,
    comment    text NOT NULL
);

-- The revocations of a shard: a range of the last two octets of the serial.
CREATE INDEX revocations_crl ON revocations (issuer, substr(serial, 15, 2), serial);

-- CRLs -------------------------------------------------------------------------

-- Every distribution point that certificates may name. Rows stay, since certificates do.
CREATE TABLE crl_sets (
    id         int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    issuer     int4 NOT NULL REFERENCES issuers (id),
    url        text NOT NULL, -- with {shard}
    shards     int4 NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (url, shards)
);

-- One row for each CRL: who makes it and the last one made.
CREATE TABLE crls (
    crl_set      int4 NOT NULL REFERENCES crl_sets (id),
    shard        int4 NOT NULL,
    reserved     int8 NOT NULL DEFAULT 0, -- the last CRLNumber given out
    maker        text NOT NULL DEFAULT '',
    claimed_till timestamptz,             -- NULL: nobody makes it
    number       int8 NOT NULL DEFAULT 0, -- the CRLNumber published; all below describe it
    seq          int8 NOT NULL DEFAULT 0, -- revocations.seq up to which it is complete
    this_update  timestamptz,
    next_update  timestamptz,
    scheduled_at timestamptz,             -- this_update of the last that was made on schedule
    entries      int8 NOT NULL DEFAULT 0,
    bytes        int8 NOT NULL DEFAULT 0,
    chunks       int4 NOT NULL DEFAULT 0,
    digest       bytea,                   -- SHA-256 over tbsCertList and what follows it
    PRIMARY KEY (crl_set, shard)
);

-- The DER in pieces, so that no CRL is ever held in memory whole.
CREATE TABLE crl_chunks (
    crl_set int4 NOT NULL,
    shard   int4 NOT NULL,
    number  int8 NOT NULL,
    chunk   int4 NOT NULL,
    der     bytea NOT NULL,
    PRIMARY KEY (crl_set, shard, number, chunk)
);
ALTER TABLE crl_chunks ALTER COLUMN der SET STORAGE EXTERNAL; -- random bits do not compress

-- Orders ------------------------------------------------------------------------

CREATE TABLE orders (
    id              uuid PRIMARY KEY,
    request_key     bytea UNIQUE, -- NULL once the key has been given to a later order
    csr             bytea NOT NULL,
    reuse_until     timestamptz NOT NULL,
    caller          text NOT NULL,
    request_id      text NOT NULL,
    request         bytea NOT NULL,
    state           text NOT NULL CHECK (state IN ('pending', 'issued', 'failed')),
    serial          bytea,
    failure         bytea,
    created_at      timestamptz NOT NULL,
    attempts        int4 NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    expires_at      timestamptz -- set when the order is settled
);
CREATE INDEX orders_pending ON orders (next_attempt_at) WHERE state = 'pending';
CREATE INDEX orders_expiring ON orders (expires_at) WHERE expires_at IS NOT NULL;

-- Enrollment tokens -------------------------------------------------------------

CREATE TABLE enrollment_tokens (
    id         uuid PRIMARY KEY,
    hash       bytea NOT NULL UNIQUE,
    profile    text NOT NULL,
    names      text[] NOT NULL,
    uses       int4 NOT NULL CHECK (uses > 0),
    used       int4 NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND uses),
    expires_at timestamptz NOT NULL,
    owner      text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL
);

-- One row for each request that a token has admitted, so that a retry costs no use.
CREATE TABLE token_uses (
    token uuid NOT NULL REFERENCES enrollment_tokens (id) ON DELETE CASCADE,
    key   bytea NOT NULL,
    PRIMARY KEY (token, key)
);

-- Audit: each row's hash covers the row before ----------------------------------

CREATE TABLE audit (
    seq         int8 PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    actor       text NOT NULL,
    action      text NOT NULL,
    subject     text NOT NULL,
    detail      text NOT NULL,
    hash        bytea NOT NULL
);

CREATE TABLE audit_head (
    id   int2 PRIMARY KEY CHECK (id = 1),
    seq  int8 NOT NULL,
    hash bytea NOT NULL
);
INSERT INTO audit_head VALUES (1, 0, decode(repeat('00', 32), 'hex'));

-- +goose StatementBegin
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

-- +goose Down
DROP TABLE audit, audit_head, token_uses, enrollment_tokens, orders, crl_chunks, crls, crl_sets, revocations,
    certificate_names, certificates, requests, ledger_state, signer_epochs, ocsp_signers, issuers;
DROP FUNCTION audit_is_append_only;
