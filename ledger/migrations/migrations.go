// Package migrations holds the ledger's schema, one folder for each dialect. Both
// folders have the same versions.
package migrations

import "embed"

// FS holds postgres/*.sql and cockroach/*.sql, for goose.
//
//go:embed postgres/*.sql cockroach/*.sql
var FS embed.FS

// Version is the schema version that this program needs. Programs of the version before
// work on it too. Files after it take away what only those still need: they wait until
// all of them are gone (ledger.FinishMigration), or for the next Version.
const Version = 12

// ShortRows is the version from which on rows may be written without what their other
// columns say.
const ShortRows = 13
