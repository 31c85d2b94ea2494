-- What operators have told to renew before it would: the certificates of an issuer, or
-- of some holders, that were issued before created_at. It changes advice, nothing else.

-- +goose Up
CREATE TABLE early_renewals (
    id         uuid PRIMARY KEY,
    issuer     text NOT NULL, -- '' is every issuer
    holder     text NOT NULL, -- '' is every holder
    renew_by   timestamptz NOT NULL,
    reason     text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL
);

-- +goose Down
DROP TABLE early_renewals;
