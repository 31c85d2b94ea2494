-- The sweep of the presigner asks for certificates that have OCSP. Where most have none,
-- as in a mesh of short-lived ones, it read all of those to find the next that has, for
-- longer than a statement may take. Certificates without OCSP are not in the index and
-- do not pay for it.

-- +goose Up
CREATE INDEX certificates_ocsp ON certificates (serial) WHERE revocation & 1 <> 0;

-- +goose Down
DROP INDEX certificates_ocsp;
