//go:build !cgo

package roles

import (
	"context"
	"errors"
	"time"

	"github.com/certmill/certmill/ocsp/presign"
)

// ErrNoPKCS11 is what everything that needs an HSM says in a build without cgo.
var ErrNoPKCS11 = errors.New("this certmill was built without cgo and cannot load PKCS#11 modules: build it with CGO_ENABLED=1 and a C compiler")

// All lists the roles that this build has.
func All() []Role { return []Role{gatewayRole(), responderRole(), stapleRole(), ledgerRole()} }

// Signer says that this build has none.
func Signer(context.Context, Source) error { return ErrNoPKCS11 }

// Presigner says that this build has none.
func Presigner(context.Context, Source) error { return ErrNoPKCS11 }

// VerifyOCSP says that this build reads no presigner's configuration.
func VerifyOCSP(context.Context, Source, time.Duration, func(presign.Difference)) (presign.Verified, error) {
	return presign.Verified{}, ErrNoPKCS11
}
