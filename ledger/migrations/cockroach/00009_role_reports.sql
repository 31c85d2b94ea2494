-- What processes that have no broker, as the ledger's maintenance, say of themselves.

-- +goose Up
CREATE TABLE IF NOT EXISTS role_reports (
    process     STRING PRIMARY KEY,
    report      BYTES NOT NULL,
    reported_at TIMESTAMPTZ NOT NULL
);

-- +goose Down
DROP TABLE IF EXISTS role_reports;
