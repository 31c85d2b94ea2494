-- Where a generation of an issuer stands that is not the active one, and which signers
-- are to take no work.

-- +goose Up
-- '': retired, or active by state; 'prepared': not active yet; 'closed': of no use any
-- more. A column beside state, whose values programs of the schema before write.
ALTER TABLE issuers ADD COLUMN IF NOT EXISTS stage STRING NOT NULL DEFAULT '';
CREATE TABLE IF NOT EXISTS signer_drains (
    name  STRING PRIMARY KEY,
    actor STRING NOT NULL,
    since TIMESTAMPTZ NOT NULL
);

-- +goose Down
DROP TABLE IF EXISTS signer_drains;
ALTER TABLE issuers DROP COLUMN IF EXISTS stage;
