// Package check holds the checks of everything in deploy that is no Go code of the
// product: `make deploy-check` runs its tests. It is a module of its own, since Helm and
// its kin are large.
package check

//go:generate go run ./schemas/gen
