-- Heads of the audit chain, signed in the HSM: what they cover cannot be rewritten, nor
-- cut off unnoticed, by who can write the database.

-- +goose Up
CREATE TABLE audit_heads (
    seq       int8 NOT NULL, -- the audit row that it stands on
    hash      bytea NOT NULL, -- that row's
    signed_at timestamptz NOT NULL,
    issuer    int4 NOT NULL REFERENCES issuers (id),
    signature bytea NOT NULL,
    PRIMARY KEY (seq, signed_at, issuer)
);
CREATE TRIGGER audit_heads_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_heads
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

-- +goose Down
DROP TABLE audit_heads;
