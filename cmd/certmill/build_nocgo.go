//go:build !cgo

package main

import (
	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
)

// hasPKCS11 says whether this build can load PKCS#11 modules.
const hasPKCS11 = false

// caCommand says that this build has no CA.
func caCommand() *cobra.Command {
	return withoutPKCS11("ca", "Set up and show the CA; needs a build with cgo")
}

// devCommand says that this build cannot run the whole service.
func devCommand() *cobra.Command {
	return withoutPKCS11("dev", "Run the whole service on this machine; needs a build with cgo")
}

func withoutPKCS11(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error { return roles.ErrNoPKCS11 },
	}
}
