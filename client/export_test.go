package client

import (
	"os"
	"time"
)

// ExampleCA is the CA of the examples.
type ExampleCA struct {
	Address, CAFile, TokenFile string
	ca                         *testCA
}

// StartExampleCA starts one; Stop ends it.
func StartExampleCA() *ExampleCA {
	dir, err := os.MkdirTemp("", "client-example")
	if err != nil {
		panic(err)
	}
	ca, err := startCA(dir, time.Hour)
	if err != nil {
		panic(err)
	}
	return &ExampleCA{Address: ca.address, CAFile: ca.file("roots.pem"), TokenFile: ca.file("token"), ca: ca}
}

// Lifetime is that of the certificates from now on.
func (e *ExampleCA) Lifetime(d time.Duration) { e.ca.life = d }

// Stop ends the CA.
func (e *ExampleCA) Stop() {
	e.ca.server.Stop()
	_ = os.RemoveAll(e.ca.dir)
}
