package gateway

import (
	"context"
	"encoding/binary"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// renewable is what the advice about a certificate depends on.
type renewable struct {
	serial              serial.Number
	issuer              *issuer
	profile             string
	caller              string // to whom it was issued
	names               []string
	notBefore, notAfter time.Time
}

// advice is when to renew, and the window in which that moment was chosen.
type advice struct {
	at, from, to time.Time
	reason       string
}

// adviseSpread is the share of the life over which the advice is spread.
const adviseSpread = 0.1

// advise spreads the advice over a window by the random bits of the certificate's
// serial: the same certificate always gets the same advice, from any gateway, and those
// that were issued together do not come back together.
func (s *service) advise(r *renewable) advice {
	out := advice{from: s.lived(r, -adviseSpread/2), to: s.lived(r, adviseSpread/2)}
	share := float64(binary.BigEndian.Uint32(r.serial[serial.Size-4:])) / (1 << 32)
	out.choose(share)
	for _, e := range s.early.standing() {
		if !s.fits(&e, r) {
			continue
		}
		pulled := advice{from: e.Created, to: e.RenewBy, reason: e.Reason}
		if pulled.choose(share); pulled.at.Before(out.at) {
			out = pulled
		}
	}
	return out
}

// lived returns when the certificate has lived renew_at of its life, and more.
func (s *service) lived(r *renewable, more float64) time.Time {
	return r.notBefore.Add(time.Duration((s.cfg.RenewAt + more) * float64(r.notAfter.Sub(r.notBefore)))).Round(time.Second)
}

func (a *advice) choose(share float64) {
	a.at = a.from.Add(time.Duration(share * float64(a.to.Sub(a.from)))).Round(time.Second)
}

// fits reports whether an early renewal is about a certificate.
func (s *service) fits(e *ledger.EarlyRenewal, r *renewable) bool {
	if e.Issuer != "" && e.Issuer != r.issuer.Name || !s.issuedAt(r).Before(e.Created) {
		return false
	}
	if e.Holder == "" || fitsHolder(e.Holder, r.caller) {
		return true
	}
	for _, n := range r.names {
		if fitsHolder(e.Holder, n) {
			return true
		}
	}
	return false
}

func fitsHolder(pattern, holder string) bool {
	if prefix, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(holder, prefix)
	}
	return pattern == holder
}

// issuedAt takes the backdate off again, by the profile as it is now. Where the issuer's
// own beginning has cut the backdate short it is not known, and the earliest it can be.
func (s *service) issuedAt(r *renewable) time.Time {
	p, err := s.profiles.Get(r.profile)
	if err != nil || r.notBefore.Equal(r.issuer.cert.NotBefore) {
		return r.notBefore
	}
	return r.notBefore.Add(p.Lifetime.Backdate.D())
}

// How long an agent may rely on what it was told.
const (
	askAgainShare = 20 // of the life, one in so many
	askAgainLeast = time.Second
	askAgainMost  = 6 * time.Hour
)

// renewalInfo says anew when to renew, for one read of the ledger by key.
func (s *service) renewalInfo(ctx context.Context, c *Caller, in *certmillv1.GetRenewalInfoRequest) (*certmillv1.RenewalInfo, error) {
	r, err := s.renewableOf(ctx, c, in.Serial)
	if err != nil {
		return nil, err
	}
	a := s.advise(r)
	again := min(max(r.notAfter.Sub(r.notBefore)/askAgainShare, askAgainLeast), askAgainMost).Round(time.Second)
	return &certmillv1.RenewalInfo{
		Serial: r.serial.String(), RenewAt: timestamppb.New(a.at), WindowStart: timestamppb.New(a.from), WindowEnd: timestamppb.New(a.to),
		Reason: a.reason, AskAgain: durationpb.New(again),
	}, nil
}

func (s *service) renewableOf(ctx context.Context, c *Caller, text string) (*renewable, error) {
	if text == "" && !c.Renewal {
		return nil, problem.Rejected("serial", "required", "name a certificate by its serial, or show it as client certificate")
	}
	n := c.Serial
	if text != "" {
		var err error
		if n, err = parseSerial(text); err != nil {
			return nil, err
		}
	}
	cert, _, err := s.ledger.Certificate(ctx, n)
	if err != nil {
		return nil, err
	}
	if !c.owns(&cert) && !c.has(Viewer, OperatorRole) {
		return nil, problem.Forbidden("serial", "own_or_viewer", "the certificate is not yours; reading it needs the role viewer")
	}
	i, err := s.issuers.get(ctx, cert.Issuer)
	if err != nil {
		return nil, err
	}
	return stored(&cert, i), nil
}

func stored(c *ledger.Certificate, i *issuer) *renewable {
	return &renewable{
		serial: c.Serial, issuer: i, profile: c.Profile, caller: c.Caller, names: c.Names, notBefore: c.NotBefore, notAfter: c.NotAfter,
	}
}
