package crl

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/ledger"
)

// task is a CRL that is due.
type task struct {
	set    ledger.CRLSet
	issuer ledger.Issuer
	crl    ledger.CRL // the one that stands
	// revoked says that it is made for a revocation, ahead of its schedule.
	revoked bool
	// base is what a delta CRL is the delta to; its Number is 0 for another CRL.
	base ledger.CRL
	key  Key
}

// look has made what is due. more is true when lookLimit ended it before the end.
func (m *Maker) look(ctx context.Context) (more bool, err error) {
	issuers, err := m.deps.Ledger.Issuers(ctx)
	if err != nil {
		return false, err
	}
	// A point that cannot be stored leaves the others alone.
	wantErr := m.register(ctx, issuers)
	sets, err := m.deps.Ledger.CRLSets(ctx)
	if err != nil {
		return false, err
	}
	crls, err := m.deps.Ledger.CRLs(ctx)
	if err != nil {
		return false, err
	}
	ends := m.living(issuers)
	sets = slices.DeleteFunc(sets, func(s ledger.CRLSet) bool { return ends[s.Issuer].IsZero() })
	if err := m.hear(ctx, sets, crls); err != nil {
		return false, err
	}
	tasks := m.due(ctx, issuers, ends, sets, crls)
	limit := time.NewTimer(lookLimit)
	defer limit.Stop()
	for i := range tasks {
		select {
		case m.hands <- struct{}{}:
			m.begin(ctx, &tasks[i])
		case <-limit.C:
			return true, wantErr
		case <-ctx.Done():
			return false, wantErr
		}
	}
	return false, wantErr
}

// living returns when the issuers end that have not yet: the end of an issuer is that of
// its CRLs, closed or not.
func (m *Maker) living(issuers []ledger.Issuer) map[int32]time.Time {
	ends := map[int32]time.Time{}
	for _, i := range issuers {
		cert, err := x509.ParseCertificate(i.DER)
		if err != nil {
			m.deps.Log.Error("an issuer's certificate cannot be read", "issuer", i.Name, "generation", i.ID, "error", err)
			continue
		}
		if m.deps.Now().Before(cert.NotAfter) {
			ends[i.ID] = cert.NotAfter
		}
	}
	return ends
}

// begin has a CRL made by a hand that it has taken.
func (m *Maker) begin(ctx context.Context, t *task) {
	s := shard{t.set.ID, t.crl.Shard}
	m.mu.Lock()
	m.busy[s] = forever
	m.mu.Unlock()
	m.work.Go(func() {
		defer func() { <-m.hands }()
		err := m.try(ctx, t)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.busy, s)
		if err != nil && ctx.Err() == nil {
			m.deps.Log.Error("a CRL could not be made; it is tried again", "error", err, "pause", pause)
			m.busy[s] = m.deps.Now().Add(pause)
		}
	})
}

// isBusy reports whether a CRL is being made or must be left alone.
func (m *Maker) isBusy(s shard, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.Before(m.busy[s])
}

// register makes the distribution points of the profiles known to the ledger, from
// where every maker has them: for as long as there are certificates, whatever becomes
// of the profile.
func (m *Maker) register(ctx context.Context, issuers []ledger.Issuer) error {
	var errs []error
	for _, i := range issuers {
		// A prepared generation's CRLs are there before its first certificate is.
		if i.State != ledger.IssuerActive && i.State != ledger.IssuerPrepared {
			continue
		}
		wanted := m.deps.Wanted()
		if m.cfg.CompleteURL != "" {
			wanted = append(slices.Clip(wanted), Wanted{i.Name, crldp.Point{URL: m.cfg.CompleteURL, Shards: 1}})
		}
		for _, w := range wanted {
			if w.Issuer != i.Name {
				continue
			}
			p := w.Point.For(i.Name, i.ID)
			errs = append(errs, m.registerPoint(ctx, i.ID, p))
			if m.cfg.Delta {
				errs = append(errs, m.registerPoint(ctx, i.ID, p.Delta()))
			}
		}
	}
	return errors.Join(errs...)
}

func (m *Maker) registerPoint(ctx context.Context, issuer int32, p crldp.Point) error {
	s := ledger.CRLSet{Issuer: issuer, URL: p.URL, Shards: p.Shards}
	if m.known[s] {
		return nil
	}
	if _, err := m.deps.Ledger.PutCRLSet(ctx, s); err != nil {
		return fmt.Errorf("the CRLs under %s: %w", p.URL, err)
	}
	m.known[s] = true
	return nil
}

const revocationPage = 1000

// hear finds the shards of new revocations. The first look begins with the earliest
// that a CRL lacks.
func (m *Maker) hear(ctx context.Context, sets []ledger.CRLSet, crls []ledger.CRL) error {
	covered := map[shard]int64{}
	earliest := int64(-1)
	deltas := m.deltas(sets)
	for _, c := range crls {
		if c.Number > 0 && deltas.follows(c.Set) {
			covered[shard{c.Set, c.Shard}] = c.Sequence
			if earliest < 0 || c.Sequence < earliest {
				earliest = c.Sequence
			}
		}
	}
	if m.cursor < 0 && earliest < 0 {
		return nil // no CRL yet: the first ones have everything
	}
	if m.cursor < 0 {
		m.cursor = earliest
	}
	now := m.deps.Now()
	for {
		page, err := m.deps.Ledger.Revocations(ctx, m.cursor, revocationPage)
		if err != nil {
			return err
		}
		for i := range page {
			m.note(sets, deltas, &page[i], now)
		}
		if len(page) > 0 {
			m.cursor = page[len(page)-1].Sequence
		}
		if len(page) < revocationPage {
			break
		}
	}
	for s, w := range m.waiting {
		if covered[s] >= w.sequence {
			delete(m.waiting, s)
		}
	}
	return nil
}

// note marks the CRLs that a revocation belongs into at once.
func (m *Maker) note(sets []ledger.CRLSet, deltas deltas, r *ledger.Revocation, now time.Time) {
	for _, set := range sets {
		if set.Issuer != r.Issuer || set.Shards > 1 && r.Services&ledger.RevocationCRL == 0 || !deltas.follows(set.ID) {
			continue
		}
		s := shard{set.ID, crldp.Of(r.Serial, set.Shards)}
		if w := m.waiting[s]; w != nil {
			w.sequence = r.Sequence
		} else {
			m.waiting[s] = &revoked{r.Sequence, now}
		}
	}
}

// due returns the CRLs to make, the most urgent first: those that lack a revocation,
// then by nextUpdate.
func (m *Maker) due(ctx context.Context, issuers []ledger.Issuer, ends map[int32]time.Time, sets []ledger.CRLSet, crls []ledger.CRL) []task {
	byID := map[int32]ledger.Issuer{}
	for _, i := range issuers {
		byID[i.ID] = i
	}
	setOf := map[int32]ledger.CRLSet{}
	for _, s := range sets {
		setOf[s.ID] = s
	}
	keys := map[int32]Key{}
	now := m.deps.Now()
	deltas, byShard := m.deltas(sets), map[shard]ledger.CRL{}
	for _, c := range crls {
		byShard[shard{c.Set, c.Shard}] = c
	}
	var tasks []task
	var nearest time.Time
	for _, c := range crls {
		set, ok := setOf[c.Set]
		if !ok {
			continue // registered between the two reads, or of an issuer that has expired
		}
		if deltas.ended[set.ID] {
			continue
		}
		t := task{set: set, issuer: byID[set.Issuer], crl: c}
		if base, is := deltas.base[set.ID]; is {
			if t.base = byShard[shard{base, c.Shard}]; t.base.Number == 0 {
				continue // before the first delta comes its base
			}
		}
		s := shard{c.Set, c.Shard}
		w := m.waiting[s]
		// One that lasts as long as its issuer cannot be made anew to last longer.
		if c.Number > 0 && c.NextUpdate.Before(ends[set.Issuer]) && (nearest.IsZero() || c.NextUpdate.Before(nearest)) {
			nearest = c.NextUpdate
		}
		switch {
		case m.isBusy(s, now):
			continue
		case c.Number == 0, c.Number < t.base.Number, !now.Before(m.next(&t)):
		case w != nil && !now.Before(w.since.Add(m.cfg.AfterRevocation)):
			t.revoked = true
		default:
			continue
		}
		if t.key = m.key(ctx, keys, t.issuer); t.key != nil {
			tasks = append(tasks, t)
		}
	}
	m.metrics.look(nearest, len(m.waiting))
	// Makers that begin at different places do not meet at every claim.
	rand.Shuffle(len(tasks), func(i, j int) { tasks[i], tasks[j] = tasks[j], tasks[i] })
	slices.SortStableFunc(tasks, func(a, b task) int {
		if a.revoked != b.revoked {
			if a.revoked {
				return -1
			}
			return 1
		}
		return a.crl.NextUpdate.Truncate(time.Minute).Compare(b.crl.NextUpdate.Truncate(time.Minute))
	})
	return tasks
}

// next is when a CRL is due by schedule: up to an eighth of the interval early, each
// shard by its own share, so that shards that began together are not made together.
func (m *Maker) next(t *task) time.Time {
	early := m.cfg.Interval / 8 * time.Duration(t.crl.Shard) / time.Duration(t.set.Shards)
	return t.crl.Scheduled.Add(m.cfg.Backdate + m.cfg.Interval - early)
}

// key finds an issuer's key once a look; nil where it is not here.
func (m *Maker) key(ctx context.Context, keys map[int32]Key, issuer ledger.Issuer) Key {
	if k, ok := keys[issuer.ID]; ok {
		return k
	}
	k, err := m.deps.Key(ctx, issuer)
	said := ""
	if err != nil {
		k, said = nil, err.Error()
	}
	if m.silent[issuer.ID] != said {
		m.silent[issuer.ID] = said
		if err != nil {
			m.deps.Log.Info("an issuer's CRLs are not made here", "issuer", issuer.Name, "generation", issuer.ID, "error", err)
		}
	}
	keys[issuer.ID] = k
	return k
}
