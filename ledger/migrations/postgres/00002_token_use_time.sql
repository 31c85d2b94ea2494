-- When a use of an enrollment token was taken: the request that took it may be sent
-- again for as long as its key stands, and not for the rest of the token's life.

-- +goose Up
ALTER TABLE token_uses ADD COLUMN used_at timestamptz NOT NULL DEFAULT now();

-- +goose Down
ALTER TABLE token_uses DROP COLUMN used_at;
