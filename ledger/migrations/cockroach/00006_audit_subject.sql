-- What was done to one thing, a certificate for example, without reading the whole trail.

-- +goose Up
CREATE INDEX IF NOT EXISTS audit_subject ON audit (subject, seq);

-- +goose Down
DROP INDEX audit_subject;
