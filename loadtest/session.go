package loadtest

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/certmill/certmill/internal/sysmon"
	"github.com/certmill/certmill/loadtest/check"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/loadtest/schedule"
	"github.com/certmill/certmill/loadtest/target"
	"github.com/certmill/certmill/loadtest/wire"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// session is all that stays the same over the runs of one command.
type session struct {
	o        *options
	kind     target.Kind
	target   target.Target
	csrs     *material.Pool
	statuses []*target.StatusRequest
	checks   check.Config
	observer *observe.Observer
	view     *view
	saver    *saver
	quiet    bool   // sysmon may be late, here and in the floor
	opened   uint64 // open loops so far
	closers  []func() error
}

// open prepares everything that need not be measured: credentials, connections, keys
// and CSRs. planned is how many requests a run will make at most, where known.
func open(ctx context.Context, o *options, planned int64, v *view) (s *session, err error) {
	s = &session{o: o, view: v}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.kind, err = target.Find(o.target); err != nil {
		return s, usage(fmt.Errorf("--target: %w", err))
	}
	roles, err := o.fillFromDev()
	if err != nil {
		return s, err
	}
	// Beside a service on the same cores. Of one core the pacer would take all: it sleeps in
	// the kernel. Without the capability both stay as they are.
	here := o.tree != 0 || s.kind.Floor
	s.quiet = here && runtime.GOMAXPROCS(0) > 1 && sysmon.ByDefault() == nil
	if s.kind.Floor {
		if err := s.startFloor(ctx); err != nil {
			return s, err
		}
	}
	if o.server.Connections == 0 {
		o.server.Connections = s.kind.Connections
		if !s.kind.Multiplexed {
			o.server.Connections = max(o.server.Connections, o.callers)
		}
	}
	if s.target, err = s.kind.Open(o.server); err != nil {
		return s, usage(err)
	}
	s.closers = append(s.closers, s.target.Close)
	if err := s.watch(ctx, roles); err != nil {
		return s, usage(err)
	}
	if err := s.prepare(ctx, planned); err != nil {
		return s, usage(err)
	}
	if s.saver, err = newSaver(o.save, o.saveMost); err != nil {
		return s, usage(err)
	}
	s.closers = append(s.closers, s.saver.close)
	if w, ok := s.target.(target.Warmer); ok {
		if err := w.Warm(ctx); err != nil {
			return s, fmt.Errorf("connecting to %s: %w", o.server.URL, err)
		}
	}
	return s, nil
}

// close ends what open started, the last first.
func (s *session) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

func (s *session) watch(ctx context.Context, roles []observe.Role) error {
	for _, w := range s.o.watch {
		name, address, ok := strings.Cut(w, "=")
		if !ok {
			return fmt.Errorf("--watch %q is not role=URL", w)
		}
		roles = append(roles, observe.Role{Name: name, Metrics: address})
	}
	s.observer = observe.New(observe.Config{Roles: roles, Tree: s.o.tree})
	s.closers = append(s.closers, func() error { s.observer.Close(); return nil })
	if err := s.observer.Check(ctx); err != nil {
		s.view.note("warning: %v", err)
	}
	return nil
}

// prepare makes CSRs or reads serials, and sets up the checks.
func (s *session) prepare(ctx context.Context, planned int64) error {
	o := s.o
	s.checks = check.Config{
		Share: o.share, AnyNames: o.anyNames, Names: o.expectNames,
		Lifetime: o.server.Lifetime, LifetimeLess: o.lifetimeLess, StatusWithin: o.statusWithin,
	}
	if s.kind.Subject == target.Statuses {
		return s.readStatuses()
	}
	if o.roots != "" {
		data, err := os.ReadFile(o.roots)
		if err != nil {
			return fmt.Errorf("--roots: %w", err)
		}
		s.checks.Roots = x509.NewCertPool()
		if !s.checks.Roots.AppendCertsFromPEM(data) {
			return fmt.Errorf("--roots: %s holds no certificate in PEM", o.roots)
		}
	}
	var err error
	s.csrs, err = material.Make(ctx, o.material(planned), func(done, of int) { s.view.progress("making CSRs", done, of) })
	if err != nil {
		return err
	}
	return errors.Join(s.checkRows(), s.checkStatuses())
}

func (s *session) hash() crypto.Hash {
	if s.o.sha256 {
		return crypto.SHA256
	}
	return crypto.SHA1
}

func (s *session) readStatuses() error {
	if s.o.serials == "" {
		return errors.New("an OCSP target needs --serials: a file that --save wrote, or serials in hexadecimal with --issuer")
	}
	issuer, err := findCA(s.o.issuer, s.o.serials)
	if err != nil {
		return err
	}
	f, err := os.Open(s.o.serials)
	if err != nil {
		return fmt.Errorf("--serials: %w", err)
	}
	defer f.Close()
	s.checks.Issuer = issuer
	s.statuses, err = target.ReadStatusRequests(f, issuer, s.hash())
	return err
}

// findCA returns the first certificate of a CA in the files given.
func findCA(files ...string) (*x509.Certificate, error) {
	for _, path := range files {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for {
			var block *pem.Block
			if block, data = pem.Decode(data); block == nil {
				break
			}
			if c, err := x509.ParseCertificate(block.Bytes); err == nil && c.IsCA {
				return c, nil
			}
		}
	}
	return nil, errors.New("no issuer's certificate: give --issuer")
}

// checkRows sets up the look into the ledger.
func (s *session) checkRows() error {
	if s.o.row == "" {
		return nil
	}
	t, err := s.clientTLS()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(s.o.row, grpc.WithTransportCredentials(credentials.NewTLS(t)))
	if err != nil {
		return fmt.Errorf("--check-row: %w", err)
	}
	s.closers = append(s.closers, conn.Close)
	service := certmillv1.NewCertificateAuthorityClient(conn)
	s.checks.Row = func(ctx context.Context, serial *big.Int) ([]byte, error) {
		c, err := service.GetCertificate(ctx, &certmillv1.GetCertificateRequest{Serial: hex.EncodeToString(serial.Bytes())})
		return c.GetDer(), err
	}
	return nil
}

func (s *session) clientTLS() (*tls.Config, error) {
	t, err := s.o.server.TLS()
	if err != nil {
		return nil, fmt.Errorf("--check-row: %w", err)
	}
	return t, nil
}

// checkStatuses sets up the question for a new certificate's OCSP status.
func (s *session) checkStatuses() error {
	if s.o.status == "" {
		return nil
	}
	u, err := url.Parse(s.o.status)
	if err != nil {
		return fmt.Errorf("--check-ocsp: %w", err)
	}
	client, err := wire.New(u, &tls.Config{MinVersion: tls.VersionTLS12}, check.Askers, http.Header{"Content-Type": {"application/ocsp-request"}})
	if err != nil {
		return fmt.Errorf("--check-ocsp: %w", err)
	}
	s.closers = append(s.closers, client.Close)
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	hash := s.hash()
	s.checks.Status = func(ctx context.Context, serial *big.Int, issuer *x509.Certificate) ([]byte, error) {
		q, err := target.NewStatusRequest(issuer, serial, hash)
		if err != nil {
			return nil, err
		}
		res, err := client.Do(ctx, &wire.Request{Method: http.MethodPost, Target: path, Body: q.DER, Deadline: time.Now().Add(5 * time.Second)})
		if err != nil {
			return nil, err
		}
		if res.Status != http.StatusOK {
			return nil, fmt.Errorf("HTTP status %d", res.Status)
		}
		return res.Body, nil
	}
	return nil
}

// result begins a result for this session.
func (s *session) result(plan schedule.Schedule) *report.Result {
	o := s.o
	r := &report.Result{Format: report.Format, Started: time.Now(), Label: o.label, Machine: observe.Here(), Plan: report.Plan{
		Target: s.kind.Name, Summary: s.kind.Summary, URL: o.server.URL, Unit: string(s.kind.Subject), Loop: "closed",
		Profile: o.server.Profile, Lifetime: o.server.Lifetime.Seconds(),
		Check: o.share, CheckRow: o.row != "", CheckOCSP: o.status != "", Seed: o.seed,
		Seconds: o.duration.Seconds(), Warmup: o.warmup.Seconds(), Timeout: o.timeout.Seconds(),
		InFlight: o.callers, Connections: o.server.Connections,
	}}
	if plan != nil {
		r.Plan.Loop, r.Plan.Schedule, r.Plan.InFlight = "open", plan.String(), s.inFlight()
	}
	if s.kind.Batch {
		r.Plan.Batch = o.server.Batch
	}
	if s.csrs != nil {
		csrs, keys := s.csrs.Size()
		r.Plan.Name, r.Plan.KeyTypes = o.name, strings.Join(o.keyTypes, ",")
		r.Plan.Keys = fmt.Sprintf("%d CSRs of %d keys (%s), each used at most %d times", csrs, keys, strings.Join(o.keyTypes, ", "), o.maxReuse)
	} else {
		r.Plan.Keys = fmt.Sprintf("%d serials, at random", len(s.statuses))
	}
	return r
}
