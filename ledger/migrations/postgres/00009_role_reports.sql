-- What processes that have no broker, as the ledger's maintenance, say of themselves.

-- +goose Up
CREATE TABLE role_reports (
    process     text PRIMARY KEY,
    report      bytea NOT NULL,
    reported_at timestamptz NOT NULL
);

-- +goose Down
DROP TABLE role_reports;
