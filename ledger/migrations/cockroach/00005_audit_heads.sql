-- Heads of the audit chain, signed in the HSM: what they cover cannot be rewritten, nor
-- cut off unnoticed, by who can write the database. Grant the services' role SELECT and
-- INSERT, not UPDATE or DELETE.

-- +goose Up
CREATE TABLE IF NOT EXISTS audit_heads (
    seq       INT8 NOT NULL, -- the audit row that it stands on
    hash      BYTES NOT NULL, -- that row's
    signed_at TIMESTAMPTZ NOT NULL,
    issuer    INT4 NOT NULL REFERENCES issuers (id),
    signature BYTES NOT NULL,
    PRIMARY KEY (seq, signed_at, issuer)
);

-- +goose Down
DROP TABLE IF EXISTS audit_heads;
