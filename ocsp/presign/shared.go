package presign

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

// sharedView is what was last read of issuers, OCSP signers and epochs. It is
// immutable.
type sharedView struct {
	shared ocsp.Shared
	// delegates can sign for an issuer, the newest first.
	delegates map[int32][]*delegate
	// templates check records of every signer, also of one whose key is not here.
	templates map[int32]*ocsp.Template
	// published says that Redis has it too.
	published bool
}

// delegate is an OCSP signer with its key.
type delegate struct {
	template *ocsp.Template
	key      ContextSigner
}

func (d *delegate) usable(now time.Time) bool {
	c := d.template.Signer
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
}

// delegate returns the signer for an issuer: the newest that is valid.
func (v *sharedView) delegate(issuer int32, now time.Time) (*delegate, error) {
	for _, d := range v.delegates[issuer] {
		if d.usable(now) {
			return d, nil
		}
	}
	return nil, fmt.Errorf("issuer %d has no valid OCSP signer with a usable key", issuer)
}

// keepShared brings what all answers share from the ledger to Redis until ctx ends.
func (p *Presigner) keepShared(ctx context.Context) {
	p.every(ctx, p.cfg.SharedPoll, "reading issuers and OCSP signers", func(ctx context.Context) error {
		_, err := p.loadShared(ctx)
		return err
	})
}

// loadShared reads the shared entries from the ledger and publishes them when they
// have changed. Records name signers and epochs, so it comes before them.
func (p *Presigner) loadShared(ctx context.Context) (*sharedView, error) {
	p.sharedMu.Lock()
	defer p.sharedMu.Unlock()
	shared, keys, err := p.readShared(ctx)
	if err != nil {
		return nil, err
	}
	old := p.shared.Load()
	view := &sharedView{shared: *shared, delegates: p.makeDelegates(ctx, shared, keys), templates: map[int32]*ocsp.Template{}}
	for id := range shared.Signers {
		// A failure has been said by makeDelegates; nothing of that signer is believed.
		if t, err := p.makeTemplate(id, shared); err == nil {
			view.templates[id] = t
		}
	}
	if old != nil && old.published && reflect.DeepEqual(old.shared, view.shared) {
		view.published = true
	}
	if !view.published {
		rctx, cancel := p.redis(ctx)
		defer cancel()
		if err := p.store.PutShared(rctx, shared); err != nil {
			return nil, err
		}
		view.published = true
	}
	p.shared.Store(view)
	p.metrics.signerExpiry.Set(float64(view.signerExpiry()))
	return view, nil
}

// signerExpiry is when the first issuer that has signers is left without one, in Unix
// seconds; 0 where none has.
func (v *sharedView) signerExpiry() (first int64) {
	for _, of := range v.delegates {
		last := int64(0)
		for _, d := range of {
			last = max(last, d.template.Signer.NotAfter.Unix())
		}
		if first == 0 || last < first {
			first = last
		}
	}
	return first
}

// republish writes the shared entries again at the next load, after Redis lost them.
func (p *Presigner) republish(ctx context.Context) error {
	p.sharedMu.Lock()
	if old := p.shared.Load(); old != nil {
		again := *old
		again.published = false
		p.shared.Store(&again)
	}
	p.sharedMu.Unlock()
	_, err := p.loadShared(ctx)
	return err
}

func (p *Presigner) readShared(ctx context.Context) (*ocsp.Shared, map[int32]string, error) {
	issuers, err := p.deps.Ledger.Issuers(ctx)
	if err != nil {
		return nil, nil, err
	}
	signers, err := p.deps.Ledger.OCSPSigners(ctx)
	if err != nil {
		return nil, nil, err
	}
	epochs, err := p.deps.Ledger.Epochs(ctx)
	if err != nil {
		return nil, nil, err
	}
	now := p.deps.Now()
	shared := &ocsp.Shared{Issuers: map[int32][]byte{}, Signers: map[int32]ocsp.SharedSigner{}, Epochs: map[uint32]int32{}}
	uris := map[int32]string{}
	for _, i := range issuers {
		shared.Issuers[i.ID] = i.DER
	}
	for _, s := range signers {
		// An expired signer's last answer has expired before it.
		if c, err := x509.ParseCertificate(s.DER); err != nil || !now.Before(c.NotAfter) {
			continue
		}
		shared.Signers[s.ID] = ocsp.SharedSigner{Issuer: s.Issuer, DER: s.DER}
		uris[s.ID] = s.KeyURI
	}
	for _, e := range epochs {
		shared.Epochs[e.ID] = e.Issuer
	}
	return shared, uris, nil
}

// makeDelegates finds the keys of the signers. One whose key cannot be had now is
// left out, said so once, and tried again at the next load.
func (p *Presigner) makeDelegates(ctx context.Context, shared *ocsp.Shared, uris map[int32]string) map[int32][]*delegate {
	out := map[int32][]*delegate{}
	// Signers of a higher id are newer.
	ids := slices.Sorted(maps.Keys(shared.Signers))
	slices.Reverse(ids)
	for _, id := range ids {
		issuer := shared.Signers[id].Issuer
		d, err := p.makeDelegate(ctx, id, shared, uris[id])
		p.keys.report(p.deps.Log, id, err)
		if err == nil {
			out[issuer] = append(out[issuer], d)
		}
	}
	return out
}

func (p *Presigner) makeDelegate(ctx context.Context, id int32, shared *ocsp.Shared, uri string) (*delegate, error) {
	if old := p.shared.Load(); old != nil {
		for _, d := range old.delegates[shared.Signers[id].Issuer] {
			if d.template.SignerID == id {
				return d, nil
			}
		}
	}
	template, err := p.makeTemplate(id, shared)
	if err != nil {
		return nil, err
	}
	key, err := p.keys.get(ctx, uri, template.Signer.PublicKey)
	if err != nil {
		return nil, err
	}
	d := &delegate{template: template, key: key}
	return d, d.tryOut(ctx)
}

// makeTemplate prepares the answers of a signer, or takes those that there are.
func (p *Presigner) makeTemplate(id int32, shared *ocsp.Shared) (*ocsp.Template, error) {
	signer := shared.Signers[id]
	if old := p.shared.Load(); old != nil {
		if t := old.templates[id]; t != nil && bytes.Equal(t.Signer.Raw, signer.DER) {
			return t, nil
		}
	}
	issuerCert, err := x509.ParseCertificate(shared.Issuers[signer.Issuer])
	if err != nil {
		return nil, fmt.Errorf("its issuer: %w", err)
	}
	issuer, err := ocsp.NewIssuer(signer.Issuer, issuerCert)
	if err != nil {
		return nil, err
	}
	signerCert, err := x509.ParseCertificate(signer.DER)
	if err != nil {
		return nil, err
	}
	return ocsp.NewTemplate(id, issuer, signerCert)
}

// signedBy says what is known of a record's signatures.
type signedBy uint8

const (
	signedByUs      signedBy = iota // or a good record, of which only the times are looked at
	signedByUnknown                 // its signer is not in the ledger, or no longer valid
	signedByNobody                  // a known signer's signature is wrong, or it comes from the future
)

// maxSkew is how far the clock of the presigner that made a record may be ahead.
const maxSkew = 5 * time.Minute

// signed checks what a record in Redis claims, as far as harm could come of it. A
// revoked record stands for good, so its signatures are verified. A good one that is
// forged fails at the client and gives way to the next; unless it comes from the
// future, where it would stand against every later one.
func (v *sharedView) signed(st *ledger.Status, rec *ocsp.Record, encoded string, now time.Time, known *checked) signedBy {
	if !rec.Revoked {
		if rec.ThisUpdate > now.Add(maxSkew).Unix() {
			return signedByNobody
		}
		return signedByUs
	}
	t := v.templates[rec.Signer]
	if t == nil || v.shared.Signers[rec.Signer].Issuer != st.Issuer {
		return signedByUnknown
	}
	if known.has(st.Serial, encoded) {
		return signedByUs
	}
	for h, sig := range rec.Signatures {
		if sig != "" && t.Check(ocsp.Hash(h), st.Serial, &rec.Status, sig) != nil {
			return signedByNobody
		}
	}
	known.add(st.Serial, encoded)
	return signedByUs
}

var _ Ledger = (*ledger.Ledger)(nil)
