package presign

import (
	"context"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

// Difference is one way in which Redis does not say what the ledger says.
type Difference struct {
	Serial serial.Number
	// Kind is one of the kinds of certmill_presign_mismatches_total.
	Kind string
	// Detail says it in a few words.
	Detail string
}

// Verified counts what Verify has compared.
type Verified struct {
	Certificates int // of the ledger
	Records      int // of Redis
	Differences  int
}

// Verify compares every unexpired certificate of the ledger that has OCSP with its
// record, signatures included, and every record with the ledger, and calls report for
// each difference. It changes nothing. Certificates and revocations younger than
// grace are passed over, since their answers may be on the way; with a grace of 0
// nothing is.
func Verify(ctx context.Context, l Ledger, store *ocsp.Store, grace time.Duration, report func(Difference)) (Verified, error) {
	v := &verifier{ledger: l, store: store, grace: grace, report: report, now: time.Now()}
	if err := v.load(ctx); err != nil {
		return v.sum, err
	}
	if err := v.certificates(ctx); err != nil {
		return v.sum, err
	}
	return v.sum, v.records(ctx)
}

const verifyPage = 1000

type verifier struct {
	ledger Ledger
	store  *ocsp.Store
	grace  time.Duration
	report func(Difference)
	now    time.Time
	issuer *ocsp.Directory
	sum    Verified
}

func (v *verifier) load(ctx context.Context) error {
	shared, err := v.store.Shared(ctx)
	if err != nil {
		return err
	}
	v.issuer, err = ocsp.NewDirectory(shared)
	return err
}

func (v *verifier) differ(n serial.Number, kind, detail string) {
	v.sum.Differences++
	v.report(Difference{Serial: n, Kind: kind, Detail: detail})
}

// certificates goes from the ledger to Redis.
func (v *verifier) certificates(ctx context.Context) error {
	var after serial.Number
	for {
		page, err := v.ledger.SweepStatuses(ctx, after, verifyPage)
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].Serial
		records, err := v.store.Get(ctx, serialsOf(page))
		if err != nil {
			return err
		}
		for i := range page {
			v.sum.Certificates++
			v.compare(&page[i], records[i])
		}
	}
}

func (v *verifier) compare(st *ledger.Status, record string) {
	n := st.Serial
	if record == "" {
		// notBefore is backdated by an amount that only the profile knows, so a grace
		// short of youngAge would take what was just issued for missing.
		if v.grace == 0 || v.now.Sub(st.NotBefore) > max(v.grace, youngAge) {
			v.differ(n, mismatchMissing, "no record")
		}
		return
	}
	rec, err := ocsp.DecodeRecord(record)
	if err != nil {
		v.differ(n, mismatchUnread, err.Error())
		return
	}
	switch {
	case st.Revoked != nil && !rec.Revoked && v.now.Sub(st.Revoked.RevokedAt) > v.grace:
		v.differ(n, mismatchGood, "revoked in the ledger at "+st.Revoked.RevokedAt.Format(time.RFC3339)+", good in Redis")
	case st.Revoked == nil && rec.Revoked && v.now.Unix()-rec.RevokedAt > int64(v.grace/time.Second):
		v.differ(n, mismatchRevoked, "good in the ledger, revoked in Redis since "+time.Unix(rec.RevokedAt, 0).UTC().Format(time.RFC3339))
	case st.Revoked != nil && rec.Revoked && (rec.RevokedAt != st.Revoked.RevokedAt.Unix() || int16(rec.Reason) != st.Revoked.Reason):
		v.differ(n, mismatchGood, "revoked at another time or for another reason than in the ledger")
	}
	if rec.Expired(v.now) {
		v.differ(n, mismatchExpired, "nextUpdate was "+time.Unix(rec.NextUpdate, 0).UTC().Format(time.RFC3339))
	}
	if rec.NextUpdate > st.NotAfter.Unix() {
		v.differ(n, mismatchTooLong, "nextUpdate lies after notAfter")
	}
	template := v.issuer.Template(rec.Signer)
	if template == nil || template.Issuer.ID != st.Issuer {
		v.differ(n, mismatchSignedBy, "the signer is unknown or another issuer's")
		return
	}
	for h := range ocsp.Hashes {
		if err := template.Check(h, n, &rec.Status, rec.Signatures[h]); err != nil {
			v.differ(n, mismatchSignedBy, err.Error())
			return
		}
	}
}

// records goes from Redis to the ledger.
func (v *verifier) records(ctx context.Context) error {
	for shards := range chunks(shardsOf(^uint64(0)), countChunk) {
		var found []serial.Number
		if err := v.store.EachRecord(ctx, shards, func(n serial.Number, _ string) { found = append(found, n) }); err != nil {
			return err
		}
		v.sum.Records += len(found)
		for page := range chunks(found, verifyPage) {
			known, err := v.ledger.Statuses(ctx, page)
			if err != nil {
				return err
			}
			has := make(map[serial.Number]bool, len(known))
			for i := range known {
				has[known[i].Serial] = true
			}
			for _, n := range page {
				if !has[n] && v.now.Before(n.Bucket().End()) {
					v.differ(n, mismatchUnknown, "the ledger does not have this certificate")
				}
			}
		}
	}
	return nil
}
