-- From here on programs leave out of a certificate's row what its other columns say, and
-- nobody looks for the text of a name or a caller in an index: only for programs that
-- know step 10.

-- +goose Up
-- As in step 10.
SET LOCAL lock_timeout = '3s';
DROP INDEX certificates_name, certificates_caller;

-- +goose Down
CREATE INDEX certificates_name ON certificates (name, serial);
CREATE INDEX certificates_caller ON certificates (caller, serial);
