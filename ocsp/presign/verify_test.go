package presign

import (
	"maps"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

func TestVerifyFindsEveryDifference(t *testing.T) {
	w := newWorld(t)
	p := w.presign()
	st := make([]ledger.Status, 7)
	for i := range st {
		st[i] = w.issue(100 * time.Hour)
	}
	w.ledger.Revoke(st[6].Serial, 1)
	w.eventually("all have records", func() bool {
		for i := range st {
			if _, ok := w.record(st[i].Serial); !ok {
				return false
			}
		}
		rec, _ := w.record(st[6].Serial)
		return rec.Revoked
	})
	p.stop()
	verify := func() map[serial.Number]string {
		found := map[serial.Number]string{}
		sum, err := Verify(t.Context(), w.ledger, w.store, 0, func(d Difference) { found[d.Serial] = d.Kind })
		noError(t, err)
		if sum.Differences != len(found) || sum.Certificates == 0 {
			t.Errorf("%+v", sum)
		}
		return found
	}
	if found := verify(); len(found) != 0 {
		t.Fatalf("differences where there are none: %v", found)
	}
	put := func(i int, change func(*recordEdit)) {
		rec, _ := w.record(st[i].Serial)
		e := recordEdit{&rec}
		change(&e)
		encoded, err := rec.AppendTo(nil)
		noError(t, err)
		noError(t, w.store.Client().HSet(t.Context(), shardKey(st[i].Serial), fieldOf(st[i].Serial), encoded).Err())
	}
	want := map[serial.Number]string{
		st[0].Serial: mismatchMissing, st[1].Serial: mismatchUnread, st[2].Serial: mismatchSignedBy, st[3].Serial: mismatchSignedBy,
		st[4].Serial: mismatchUnknown, st[5].Serial: mismatchGood,
	}
	noError(t, w.store.Client().HDel(t.Context(), shardKey(st[0].Serial), fieldOf(st[0].Serial)).Err())
	noError(t, w.store.Client().HSet(t.Context(), shardKey(st[1].Serial), fieldOf(st[1].Serial), "x").Err())
	put(2, func(e *recordEdit) { e.NextUpdate++ })  // the signature is over another time
	put(3, func(e *recordEdit) { e.Signer = 1000 }) // nobody
	w.ledger.Forget(st[4].Serial)
	w.ledger.Revoke(st[5].Serial, 1)
	w.ahead.Add(int64(time.Hour))
	time.Sleep(1100 * time.Millisecond) // revocations have whole seconds, and grace is 0
	if found := verify(); !maps.Equal(found, want) {
		t.Errorf("found %v\nwant %v", found, want)
	}
}
