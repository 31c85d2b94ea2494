-- The account of signatures: what became of each that an epoch has made. Signatures
-- that have no row are listed, and counted in discarded.

-- +goose Up
ALTER TABLE signer_epochs
    ADD COLUMN committed int8 NOT NULL DEFAULT 0, -- certificates that became rows
    ADD COLUMN discarded int8 NOT NULL DEFAULT 0, -- signatures that did not
    ADD COLUMN crls      int8 NOT NULL DEFAULT 0; -- signatures of CRLs

CREATE TABLE signature_strays (
    serial      bytea PRIMARY KEY,
    epoch       int4 NOT NULL,
    reason      text NOT NULL CHECK (reason IN ('duplicate', 'refused', 'unknown', 'died')),
    recorded_at timestamptz NOT NULL
);

-- +goose Down
DROP TABLE signature_strays;
ALTER TABLE signer_epochs DROP COLUMN committed, DROP COLUMN discarded, DROP COLUMN crls;
