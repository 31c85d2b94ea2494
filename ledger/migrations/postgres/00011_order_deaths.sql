-- How many signers have begun an order that had been handed out before, and never ended
-- it: an order that kills each signer that takes it must not go round for ever.

-- +goose Up
-- Rather fail, and be run again, than wait behind a long transaction.
SET LOCAL lock_timeout = '3s';
ALTER TABLE orders ADD COLUMN deaths int4 NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE orders DROP COLUMN deaths;
