// Package presence is how the processes of the service know of each other: each
// tells, every two seconds, who it is and how it is, and whoever wants to know keeps
// what was heard. Nothing depends on it but what people and autoscalers look at: a
// report that is lost costs two seconds.
//
// A report travels as a certmill.v1.RoleStatus. Roles on NATS publish it, sealed by
// package queue; a responder, which has no NATS, leaves it in Redis, and presigners
// pass it on; the ledger's maintenance leaves it in the ledger, where gateways look.
package presence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/telemetry"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Interval is how often a process reports.
const Interval = 2 * time.Second

// The states of a process.
const (
	Ready    = "ready"
	NotReady = "not_ready"
	Draining = "draining"
	Drained  = "drained" // a signer that is to take no work, and has none left
	Stopped  = "stopped" // the last report of an orderly end
	Silent   = "silent"  // nothing was heard for SilentAfter; only a Roll says so
)

// The roles that report.
const (
	Gateway   = "gateway"
	Signer    = "signer"
	Presigner = "presigner"
	Responder = "responder"
	// Maintenance leaves its reports in the ledger.
	Maintenance = "maintenance"
)

// Bounds of a report, so that none can grow what keeps it.
const (
	maxReason = 512
	maxParts  = 64 // tokens, bounds, issuers
)

// Reporter makes the reports of one process.
type Reporter struct {
	identity *certmillv1.RoleStatus
	describe func(*certmillv1.RoleStatus)
}

// NewReporter makes a Reporter. An empty name means the host's. describe fills in the
// state and what the role has to say; it is called for every report, by one goroutine
// at a time, and must be quick.
func NewReporter(role, name string, describe func(*certmillv1.RoleStatus)) *Reporter {
	if name == "" {
		name, _ = os.Hostname() // a host without a name shows none
	}
	var instance [8]byte
	_, _ = rand.Read(instance[:]) // never fails
	version, revision := telemetry.Build()
	return &Reporter{describe: describe, identity: &certmillv1.RoleStatus{
		Role: role, Name: name, Instance: hex.EncodeToString(instance[:]),
		Version: version, Revision: revision, Started: timestamppb.Now(),
	}}
}

// Report describes the process now.
func (r *Reporter) Report() *certmillv1.RoleStatus {
	m := proto.CloneOf(r.identity)
	m.State = Ready
	r.describe(m)
	m.Reported = timestamppb.Now()
	trim(m)
	return m
}

// Run sends a report at once and then every Interval, until ctx ends; then a last one,
// which says that the process has stopped. A report that cannot be sent is told to
// failed when that begins, and the next one is tried.
func (r *Reporter) Run(ctx context.Context, send func(context.Context, *certmillv1.RoleStatus) error, failed func(error)) {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	failing := false
	for {
		sendCtx, cancel := context.WithTimeout(ctx, Interval)
		err := send(sendCtx, r.Report())
		cancel()
		if ctx.Err() != nil {
			break
		}
		if err != nil && !failing {
			failed(err)
		}
		failing = err != nil
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	last := r.Report()
	last.State, last.Reason = Stopped, ""
	sendCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Interval)
	defer cancel()
	_ = send(sendCtx, last) // whoever does not hear it sees the process fall silent
}

// State puts the result of a role's readiness check into a report.
func State(m *certmillv1.RoleStatus, ready error) {
	if ready != nil {
		m.State, m.Reason = NotReady, ready.Error()
	}
}

// trim keeps a report within its bounds.
func trim(m *certmillv1.RoleStatus) {
	m.Reason = clip(m.Reason)
	m.Bounds = m.Bounds[:min(len(m.Bounds), maxParts)]
	m.Issuers = m.Issuers[:min(len(m.Issuers), maxParts)]
	m.Tokens = m.Tokens[:min(len(m.Tokens), maxParts)]
	for _, t := range m.Tokens {
		t.Reason = clip(t.Reason)
	}
}

func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxReason)], "")
}
