-- How many signers have begun an order that had been handed out before, and never ended
-- it: an order that kills each signer that takes it must not go round for ever.

-- +goose Up
ALTER TABLE orders ADD COLUMN IF NOT EXISTS deaths INT4 NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE orders DROP COLUMN IF EXISTS deaths;
