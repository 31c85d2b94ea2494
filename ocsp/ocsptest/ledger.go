package ocsptest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// Ledger is a ledger in memory, for what needs a million certificates or a failure at
// will. It has the methods that a presigner reads, with the contract of
// ledger.Ledger. It is safe for concurrent use.
type Ledger struct {
	Now func() time.Time

	mu          sync.Mutex
	issuers     []ledger.Issuer
	signers     []ledger.OCSPSigner
	epochs      []ledger.Epoch
	statuses    map[serial.Number]ledger.Status
	order       []serial.Number // sorted, unless dirty
	dirty       bool
	revocations []ledger.Revocation
	fail        error
	calls       map[string]int
}

// NewLedger makes an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{Now: time.Now, statuses: map[serial.Number]ledger.Status{}, calls: map[string]int{}}
}

// Fail makes every call fail with err until it is called with nil.
func (l *Ledger) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

// Calls returns how often a method was called.
func (l *Ledger) Calls(method string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls[method]
}

// AddIssuer stores an issuer and returns its id.
func (l *Ledger) AddIssuer(ca *CA) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := int32(len(l.issuers) + 1)
	l.issuers = append(l.issuers, ledger.Issuer{ID: id, Name: ca.Certificate.Subject.CommonName, State: ledger.IssuerActive, DER: ca.Certificate.Raw})
	return id
}

// AddSigner stores an OCSP signer and returns its id.
func (l *Ledger) AddSigner(issuer int32, der []byte, keyURI string) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := int32(len(l.signers) + 1)
	l.signers = append(l.signers, ledger.OCSPSigner{ID: id, Issuer: issuer, DER: der, KeyURI: keyURI})
	return id
}

// AddEpoch starts an epoch of an issuer.
func (l *Ledger) AddEpoch(issuer int32) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := uint32(len(l.epochs) + 1)
	l.epochs = append(l.epochs, ledger.Epoch{ID: id, Signer: "test", Issuer: issuer, Started: l.Now()})
	return id
}

// Issue stores certificates, or puts other statuses in the place of theirs.
func (l *Ledger) Issue(statuses ...ledger.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range statuses {
		if _, known := l.statuses[s.Serial]; !known {
			l.order = append(l.order, s.Serial)
		}
		l.statuses[s.Serial] = s
	}
	l.dirty = true
}

// Forget removes a certificate, as a restore of an older ledger does.
func (l *Ledger) Forget(n serial.Number) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.statuses, n)
	l.order = slices.DeleteFunc(l.order, func(m serial.Number) bool { return m == n })
}

// Revoke revokes a certificate and returns its revocation; the first one stands.
func (l *Ledger) Revoke(n serial.Number, reason int16) ledger.Revocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.statuses[n]
	if s.Revoked != nil {
		return *s.Revoked
	}
	r := ledger.Revocation{
		Serial: n, Issuer: s.Issuer, Reason: reason, RevokedAt: l.Now().UTC().Truncate(time.Second), NotAfter: s.NotAfter,
		Services: s.Revocation, Sequence: int64(len(l.revocations) + 1),
	}
	l.revocations = append(l.revocations, r)
	s.Revoked = &r
	l.statuses[n] = s
	return r
}

// Status returns what the ledger says of a serial.
func (l *Ledger) Status(n serial.Number) (ledger.Status, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.statuses[n]
	return s, ok
}

func (l *Ledger) begin(method string) error {
	l.calls[method]++
	return l.fail
}

// Issuers implements the presigner's ledger.
func (l *Ledger) Issuers(context.Context) ([]ledger.Issuer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.issuers), l.begin("Issuers")
}

// OCSPSigners implements the presigner's ledger.
func (l *Ledger) OCSPSigners(context.Context) ([]ledger.OCSPSigner, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.signers), l.begin("OCSPSigners")
}

// Epochs implements the presigner's ledger.
func (l *Ledger) Epochs(context.Context) ([]ledger.Epoch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.epochs), l.begin("Epochs")
}

// Statuses implements the presigner's ledger.
func (l *Ledger) Statuses(_ context.Context, serials []serial.Number) ([]ledger.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.begin("Statuses"); err != nil {
		return nil, err
	}
	var out []ledger.Status
	for _, n := range serials {
		if s, ok := l.statuses[n]; ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// SweepStatuses implements the presigner's ledger.
func (l *Ledger) SweepStatuses(_ context.Context, after serial.Number, limit int) ([]ledger.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.begin("SweepStatuses"); err != nil {
		return nil, err
	}
	if l.dirty {
		slices.SortFunc(l.order, func(a, b serial.Number) int { return bytes.Compare(a[:], b[:]) })
		l.dirty = false
	}
	now := l.Now()
	from, found := slices.BinarySearchFunc(l.order, after, func(a, b serial.Number) int { return bytes.Compare(a[:], b[:]) })
	if found {
		from++
	}
	var out []ledger.Status
	for _, n := range l.order[from:] {
		if s := l.statuses[n]; s.NotAfter.After(now) && s.Revocation&ledger.RevocationOCSP != 0 {
			if out = append(out, s); len(out) == limit {
				break
			}
		}
	}
	return out, nil
}

// Revocations implements the presigner's ledger.
func (l *Ledger) Revocations(_ context.Context, after int64, limit int) ([]ledger.Revocation, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.begin("Revocations"); err != nil {
		return nil, err
	}
	rest := l.revocations[min(int(after), len(l.revocations)):]
	return slices.Clone(rest[:min(limit, len(rest))]), nil
}
