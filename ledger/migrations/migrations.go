// Package migrations holds the ledger's schema, one folder for each dialect. Both
// folders have the same versions.
package migrations

import "embed"

// FS holds postgres/*.sql and cockroach/*.sql, for goose.
//
//go:embed postgres/*.sql cockroach/*.sql
var FS embed.FS

// Version is the schema version that this program needs: the number of the last file.
const Version = 8
