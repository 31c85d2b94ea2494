// The generator of the package's assembly, in a module of its own so that the product's
// go.mod stays small.
module github.com/certmill/certmill/internal/p256x8/_asm

go 1.26.8

require github.com/mmcloughlin/avo v0.5.0

require (
	golang.org/x/mod v0.41.0 // indirect
	golang.org/x/sync v0.23.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
)
