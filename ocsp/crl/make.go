package crl

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// entriesPage is how many entries are read from the ledger at once.
const entriesPage = 5000

// try makes one CRL, if nobody else does.
func (m *Maker) try(ctx context.Context, t *task) (err error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Claim)
	defer cancel()
	claim, ok, err := m.deps.Ledger.ClaimCRL(ctx, t.set.ID, t.crl.Shard, t.crl.Number, m.name, m.cfg.Claim)
	if err == nil && !ok {
		return nil
	}
	defer func() { // a claim whose answer was lost too
		if err != nil {
			m.metrics.failed.Inc()
			err = errors.Join(err, m.release(ctx, claim))
		}
	}()
	url := crldp.Point{URL: t.set.URL, Shards: t.set.Shards}.Shard(t.crl.Shard)
	if err != nil {
		return fmt.Errorf("claiming CRL %s: %w", url, err)
	}
	made, err := m.make(ctx, t, claim, url)
	if err != nil {
		return fmt.Errorf("CRL %s: %w", url, err)
	}
	took := time.Since(start)
	m.metrics.made(t.revoked, took, made)
	m.deps.Log.Info("a CRL was made", "url", url, "number", made.Number, "entries", made.Entries, "bytes", made.Bytes,
		"for_revocation", t.revoked, "duration", took)
	return nil
}

// release gives a claim back although ctx may have ended.
func (m *Maker) release(ctx context.Context, claim ledger.CRLClaim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := m.deps.Ledger.ReleaseCRL(ctx, claim); err != nil {
		return fmt.Errorf("giving the claim back, which ends in %s: %w", m.cfg.Claim, err)
	}
	return nil
}

// make is the way of one claimed CRL into the ledger.
func (m *Maker) make(ctx context.Context, t *task, claim ledger.CRLClaim, url string) (ledger.CRL, error) {
	issuer, err := x509.ParseCertificate(t.issuer.DER)
	if err != nil {
		return ledger.CRL{}, fmt.Errorf("the certificate of issuer %s: %w", t.issuer.Name, err)
	}
	point := crldp.Point{URL: t.set.URL, Shards: t.set.Shards}
	// Step 1: what it is to say. The sequence is read first: whatever is revoked from
	// now on is for the next one.
	scope := ledger.CRLScope{Issuer: t.set.Issuer, Complete: t.set.Shards == 1, Unexpired: t.crl.Scheduled}
	scope.First, scope.Last = crldp.Slots(t.crl.Shard, t.set.Shards)
	if base, is := point.Base(); is {
		// A delta has the scope of its base, under the base's name, and a later number.
		if claim.Number <= t.base.Number {
			return ledger.CRL{}, fmt.Errorf("its base has number %d already: the clock of the signer that made it is ahead", t.base.Number)
		}
		scope.After, scope.Unexpired, url = t.base.Sequence, t.base.Scheduled, base.Shard(t.crl.Shard)
	}
	if scope.Sequence, err = m.deps.Ledger.RevocationSequence(ctx); err != nil {
		return ledger.CRL{}, err
	}
	count, err := m.deps.Ledger.CountCRLEntries(ctx, scope)
	if err != nil {
		return ledger.CRL{}, err
	}
	h := m.header(t, issuer, claim.Number)
	h.Count = Count(count)
	if t.set.Shards > 1 {
		h.DistributionPoint = url
	}
	if h.BaseNumber = t.base.Number; h.BaseNumber == 0 && m.cfg.Delta {
		h.Freshest = point.Delta().Shard(t.crl.Shard)
	}

	// Step 2: write and sign it, piece by piece.
	written, err := Write(ctx, h, t.key, m.entries(ctx, scope), func(chunk int, der []byte) error {
		return m.deps.Ledger.PutCRLChunk(ctx, claim, chunk, der)
	})
	if err != nil {
		return ledger.CRL{}, err
	}

	// Step 3: publish it, unless a later one stands.
	made := ledger.CRL{
		Set: t.set.ID, Shard: t.crl.Shard, Number: claim.Number, Sequence: scope.Sequence,
		ThisUpdate: h.ThisUpdate, NextUpdate: h.NextUpdate, Scheduled: t.crl.Scheduled,
		Entries: count.Entries, Bytes: written.Bytes, Chunks: written.Chunks, Digest: written.Digest,
	}
	if !t.revoked {
		made.Scheduled = h.ThisUpdate
	}
	published, err := m.deps.Ledger.PublishCRL(ctx, claim, made)
	if err == nil && !published {
		err = errors.New("it took so long that another maker has published a later one")
	}
	return made, err
}

// header fills in all but the entries. thisUpdate always rises, though clocks of
// signers differ: HTTP's Last-Modified is made of it.
func (m *Maker) header(t *task, issuer *x509.Certificate, number int64) *Header {
	now := m.deps.Now().UTC().Truncate(time.Second)
	h := &Header{
		Issuer: issuer.RawSubject, AuthorityKeyID: issuer.SubjectKeyId, Algorithm: t.key.Algorithm(), Number: number,
		ThisUpdate: now.Add(-m.cfg.Backdate), NextUpdate: now.Add(m.cfg.Validity),
	}
	if !h.ThisUpdate.After(t.crl.ThisUpdate) {
		h.ThisUpdate = t.crl.ThisUpdate.Add(time.Second)
	}
	if h.NextUpdate.After(issuer.NotAfter) {
		h.NextUpdate = issuer.NotAfter
	}
	return h
}

// entries reads a scope page by page into one buffer.
func (m *Maker) entries(ctx context.Context, scope ledger.CRLScope) Entries {
	return func(add func(ledger.CRLEntry) error) error {
		var after serial.Number
		page := make([]ledger.CRLEntry, 0, min(entriesPage, 1024))
		for {
			var err error
			if page, err = m.deps.Ledger.CRLEntries(ctx, scope, after, entriesPage, page); err != nil {
				return err
			}
			for _, e := range page {
				if err := add(e); err != nil {
					return err
				}
			}
			if len(page) < entriesPage {
				return nil
			}
			after = page[len(page)-1].Serial
		}
	}
}
