-- Where a generation of an issuer stands that is not the active one, and which signers
-- are to take no work.

-- +goose Up
-- '': retired, or active by state; 'prepared': not active yet; 'closed': of no use any
-- more. A column beside state, whose values programs of the schema before write.
ALTER TABLE issuers ADD COLUMN stage text NOT NULL DEFAULT '';
CREATE TABLE signer_drains (
    name  text PRIMARY KEY,
    actor text NOT NULL,
    since timestamptz NOT NULL
);

-- +goose Down
DROP TABLE signer_drains;
ALTER TABLE issuers DROP COLUMN stage;
