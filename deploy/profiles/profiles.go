// Package profiles holds the certificate profiles that certmill comes with. They serve
// one machine as they are; copy them and change names, issuer and URLs for anything else.
package profiles

import "embed"

// FS holds the *.yaml files.
//
//go:embed *.yaml
var FS embed.FS
