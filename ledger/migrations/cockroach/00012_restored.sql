-- When the ledger was last restored from a backup: whoever lived through that begins anew.

-- +goose Up
ALTER TABLE ledger_state ADD COLUMN IF NOT EXISTS restored_at TIMESTAMPTZ;

-- +goose Down
ALTER TABLE ledger_state DROP COLUMN IF EXISTS restored_at;
