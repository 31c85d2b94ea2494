-- Certificates are found by a name or a caller through 4 octets of hash in place of the
-- text: a mesh's names are long, and its callers nearly always the names again. The row
-- says whether it is the one meant. hashtext is what PostgreSQL's own hash indexes are
-- made of, so it stays the same from one version to the next.
--
-- ONLY: partitions that come get the indexes; those that are there get them one by one,
-- concurrently, when the steps are through (`certmill ledger migrate` does that).

-- +goose Up
-- Rather fail, and be run again, than make commits wait behind a long transaction.
SET LOCAL lock_timeout = '3s';
-- By what stands behind the name's kind ("dns:", "uri:"), which a caller may share.
CREATE INDEX certificates_name_hash ON ONLY certificates (hashtext(substr(name, strpos(name, ':') + 1)), serial);
-- A caller that is its kind alone, "mtls:", has the name for its identity, and is found there.
CREATE INDEX certificates_caller_hash ON ONLY certificates (hashtext(caller), serial) WHERE strpos(caller, ':') <> length(caller);

-- +goose Down
DROP INDEX certificates_name_hash, certificates_caller_hash;
