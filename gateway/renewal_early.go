package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// earlyRenewals keeps what operators have pulled forward. While the ledger is away the
// last reading stays in use; without one the advice is the ordinary one.
type earlyRenewals struct {
	source EarlyRenewalStore
	log    *slog.Logger
	every  time.Duration
	list   atomic.Pointer[[]ledger.EarlyRenewal]
}

func (e *earlyRenewals) standing() []ledger.EarlyRenewal {
	if list := e.list.Load(); list != nil {
		return *list
	}
	return nil
}

// run reads at once and then keeps the reading fresh until ctx ends.
func (e *earlyRenewals) run(ctx context.Context) {
	tick := time.NewTicker(e.every)
	defer tick.Stop()
	for {
		if err := e.refresh(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("the early renewals could not be read; the last known ones stay in use", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (e *earlyRenewals) refresh(ctx context.Context) error {
	list, err := e.source.EarlyRenewals(ctx)
	if err != nil {
		return fmt.Errorf("reading the early renewals: %w", err)
	}
	e.list.Store(&list)
	return nil
}

// The bounds of an early renewal.
const (
	maxEarlyAhead  = 366 * 24 * time.Hour
	maxEarlyHolder = 512 // bytes
	maxEarlyReason = 512 // bytes
)

func (s *service) renewEarly(ctx context.Context, c *Caller, in *certmillv1.RenewEarlyRequest) (*certmillv1.EarlyRenewal, error) {
	if err := s.writable.check(); err != nil {
		return nil, err
	}
	if err := c.needs(OperatorRole); err != nil {
		return nil, err
	}
	if err := s.checkRenewEarly(in); err != nil {
		return nil, err
	}
	made, err := s.ledger.CreateEarlyRenewal(ctx, ledger.EarlyRenewal{
		Issuer: in.Issuer, Holder: in.Holder, RenewBy: in.RenewBy.AsTime(), Reason: in.Reason, CreatedBy: c.ID,
	})
	if err != nil {
		return nil, err
	}
	return earlyRenewalMessage(&made), nil
}

func (s *service) checkRenewEarly(in *certmillv1.RenewEarlyRequest) error {
	now := s.now()
	switch {
	case in.Issuer == "" && in.Holder == "":
		return problem.Rejected("issuer", "required", "say whose certificates: an issuer, a holder, or both")
	case in.Issuer != "" && s.issuers.current().active[in.Issuer] == nil:
		return problem.Rejected("issuer", "issuer_unknown", "there is no issuer of this name")
	case len(in.Holder) > maxEarlyHolder || !plainText(in.Holder) || strings.Contains(strings.TrimSuffix(in.Holder, "*"), "*"):
		return problem.Rejected("holder", "holder_pattern", "a holder is a caller's id or a name with its kind, at most %d bytes, with a star at its end alone", maxEarlyHolder)
	case in.RenewBy == nil || in.RenewBy.CheckValid() != nil || in.RenewBy.AsTime().Before(now.Add(-time.Minute)) || in.RenewBy.AsTime().After(now.Add(maxEarlyAhead)):
		return problem.Rejected("renew_by", "renew_by_range", "renew_by is a time from now to a year ahead, for example 2030-01-02T15:04:05Z")
	case len(in.Reason) > maxEarlyReason || !plainText(in.Reason):
		return problem.Rejected("reason", "reason_text", "a reason is at most %d bytes of text without control characters", maxEarlyReason)
	}
	return nil
}

func (s *service) listEarlyRenewals(ctx context.Context, c *Caller) (*certmillv1.ListEarlyRenewalsResponse, error) {
	if err := c.needs(OperatorRole, Viewer); err != nil {
		return nil, err
	}
	list, err := s.ledger.EarlyRenewals(ctx)
	if err != nil {
		return nil, err
	}
	out := &certmillv1.ListEarlyRenewalsResponse{}
	for i := range list {
		out.EarlyRenewals = append(out.EarlyRenewals, earlyRenewalMessage(&list[i]))
	}
	return out, nil
}

func (s *service) endEarlyRenewal(ctx context.Context, c *Caller, in *certmillv1.EndEarlyRenewalRequest) (*certmillv1.EndEarlyRenewalResponse, error) {
	if err := s.writable.check(); err != nil {
		return nil, err
	}
	if err := c.needs(OperatorRole); err != nil {
		return nil, err
	}
	if err := s.ledger.EndEarlyRenewal(ctx, in.Id, c.ID); err != nil {
		return nil, err
	}
	return &certmillv1.EndEarlyRenewalResponse{}, nil
}

func earlyRenewalMessage(e *ledger.EarlyRenewal) *certmillv1.EarlyRenewal {
	return &certmillv1.EarlyRenewal{
		Id: e.ID, Issuer: e.Issuer, Holder: e.Holder, RenewBy: timestamppb.New(e.RenewBy), Reason: e.Reason,
		CreatedBy: e.CreatedBy, Created: timestamppb.New(e.Created),
	}
}
