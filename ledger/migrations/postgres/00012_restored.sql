-- When the ledger was last restored from a backup: whoever lived through that begins anew.

-- +goose Up
ALTER TABLE ledger_state ADD COLUMN restored_at timestamptz;

-- +goose Down
ALTER TABLE ledger_state DROP COLUMN restored_at;
