-- +goose NO TRANSACTION
-- The account of signatures: what became of each that an epoch has made. Signatures
-- that have no row are listed, and counted in discarded.

-- +goose Up
ALTER TABLE signer_epochs ADD COLUMN IF NOT EXISTS committed INT8 NOT NULL DEFAULT 0;
ALTER TABLE signer_epochs ADD COLUMN IF NOT EXISTS discarded INT8 NOT NULL DEFAULT 0;
ALTER TABLE signer_epochs ADD COLUMN IF NOT EXISTS crls INT8 NOT NULL DEFAULT 0;

CREATE TABLE IF NOT EXISTS signature_strays (
    serial      BYTES PRIMARY KEY,
    epoch       INT4 NOT NULL,
    reason      STRING NOT NULL CHECK (reason IN ('duplicate', 'refused', 'unknown', 'died')),
    recorded_at TIMESTAMPTZ NOT NULL
);

-- +goose Down
DROP TABLE IF EXISTS signature_strays;
ALTER TABLE signer_epochs DROP COLUMN IF EXISTS committed;
ALTER TABLE signer_epochs DROP COLUMN IF EXISTS discarded;
ALTER TABLE signer_epochs DROP COLUMN IF EXISTS crls;
