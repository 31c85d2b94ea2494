// Package docs holds the pages that the program prints.
package docs

import _ "embed"

// Configuration is the reference of all configuration keys, in Markdown.
//
//go:embed configuration.md
var Configuration string
