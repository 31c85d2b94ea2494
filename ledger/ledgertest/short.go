package ledgertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

var shortTests = map[string]func(*testing.T, *env){
	"what a row leaves out is read and found":      leftOut,
	"a name is not taken for one of its hash":      sameHash,
	"a caller without an identity is refused":      callerWithoutIdentity,
	"a hash that is not the key's is left as is":   foreignHash,
	"a row that says too little is no certificate": tooShort,
}

// issued is an entry with a certificate that is one.
func issued(t *testing.T, e *env) ledger.Entry {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	noError(t, err)
	x := e.entry(t, time.Hour)
	template := &x509.Certificate{SerialNumber: new(big.Int).SetBytes(x.Serial[:]), NotBefore: x.NotBefore, NotAfter: x.NotAfter}
	x.DER, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	noError(t, err)
	cert, err := x509.ParseCertificate(x.DER)
	noError(t, err)
	x.SPKI = sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return x
}

func leftOut(t *testing.T, e *env) {
	const id = "spiffe://example.test/a"
	stored := map[serial.Number]ledger.Entry{}
	rows := map[serial.Number]string{} // what PostgreSQL's row has for the caller
	for _, c := range []struct {
		caller string
		names  []string
		row    string
	}{
		{"mtls:" + id, []string{"uri:" + id}, "mtls:"},
		{"mtls:" + id, []string{"uri:" + id, "dns:a.test", "dns:b.test"}, "mtls:"},
		{"mtls:" + id, []string{"uri:" + id + "/b"}, "mtls:" + id},
		{"mtls:" + id, []string{"dns:a.test", "uri:" + id}, "mtls:" + id},
		{"mtls:" + id, nil, "mtls:" + id},
		{"mtls:cn:" + id, []string{"uri:" + id}, "mtls:cn:" + id},
		{"mtls:dns:a.test", []string{"dns:a.test"}, "mtls:dns:a.test"},
		{"mtls:cn:a:", []string{"dns:a.test"}, "mtls:cn:a:"},
		{"alice", []string{"dns:alice"}, "alice"},
		{"", []string{"uri:" + id}, ""},
	} {
		x := issued(t, e)
		x.Caller, x.Names = c.caller, c.names
		commitOne(t, e.Ledger, x)
		stored[x.Serial], rows[x.Serial] = x, c.row
	}
	find := func(f ledger.Filter, wanted func(*ledger.Entry) bool) {
		t.Helper()
		page, _, err := e.List(t.Context(), f, "", 100)
		noError(t, err)
		var got, want []string
		for _, l := range page {
			got = append(got, l.Serial.String())
			if in := stored[l.Serial].Certificate; !reflect.DeepEqual(l.Certificate, in) {
				t.Errorf("read %+v, want %+v", l.Certificate, in)
			}
		}
		for _, x := range stored {
			if wanted(&x) {
				want = append(want, x.Serial.String())
			}
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%+v finds %d, want %d", f, len(got), len(want))
		}
	}
	find(ledger.Filter{}, func(*ledger.Entry) bool { return true })
	for _, x := range stored {
		if x.Caller != "" {
			find(ledger.Filter{Caller: x.Caller}, func(o *ledger.Entry) bool { return o.Caller == x.Caller })
		}
		for _, name := range x.Names {
			find(ledger.Filter{Name: name}, func(o *ledger.Entry) bool { return slices.Contains(o.Names, name) })
		}
	}
	for _, nobody := range []string{"mtls:", "mtls:cn:", "x:" + id, id, "dns:", "spiffe:"} {
		find(ledger.Filter{Caller: nobody}, func(*ledger.Entry) bool { return false })
		find(ledger.Filter{Name: nobody}, func(*ledger.Entry) bool { return false })
	}
	e.onPostgreSQL(t)
	conn := e.connect(t)
	for n, want := range rows {
		var caller string
		var spki []byte
		noError(t, conn.QueryRow(t.Context(), `SELECT caller, spki FROM certificates WHERE serial = $1`, n[:]).Scan(&caller, &spki))
		if caller != want || len(spki) != 0 {
			t.Errorf("the row of %v has the caller %q, want %q, and %d octets of hash", stored[n].Names, caller, want, len(spki))
		}
	}
}

func sameHash(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	var a, b string
	noError(t, e.connect(t).QueryRow(t.Context(), `SELECT min(id), max(id) FROM (SELECT 'a' || n AS id FROM generate_series(1, 400000) n) AS ids
		GROUP BY hashtext(id) HAVING count(*) > 1 LIMIT 1`).Scan(&a, &b))
	for _, id := range []string{a, b} {
		x := issued(t, e)
		x.Names, x.Caller = []string{"dns:" + id}, "mtls:"+id
		commitOne(t, e.Ledger, x)
		// Its caller's hash is another's, its name's is the same.
		x = issued(t, e)
		x.Names, x.Caller = []string{"uri:" + id}, "alice"
		commitOne(t, e.Ledger, x)
	}
	for _, id := range []string{a, b} {
		for what, f := range map[string]ledger.Filter{"name": {Name: "dns:" + id}, "caller": {Caller: "mtls:" + id}} {
			page, _, err := e.List(t.Context(), f, "", 10)
			noError(t, err)
			if len(page) != 1 || page[0].Names[0] != "dns:"+id || page[0].Caller != "mtls:"+id {
				t.Errorf("by %s %s there is %+v", what, id, page)
			}
		}
	}
}

func callerWithoutIdentity(t *testing.T, e *env) {
	x := issued(t, e)
	x.Caller = "mtls:"
	wantKind(t, e.CommitBatch(t.Context(), []ledger.Entry{x})[0].Err, problem.Invalid)
}

func foreignHash(t *testing.T, e *env) {
	x := issued(t, e)
	x.SPKI[0] ^= 1
	commitOne(t, e.Ledger, x)
	got, _, err := e.Certificate(t.Context(), x.Serial)
	noError(t, err)
	if got.SPKI != x.SPKI {
		t.Error("the hash that was stored is not the one that is read")
	}
}

func tooShort(t *testing.T, e *env) {
	x := issued(t, e)
	commitOne(t, e.Ledger, x)
	_, err := e.connect(t).Exec(t.Context(), `UPDATE certificates SET der = substr(der, 1, 100), spki = '' WHERE serial = $1`, x.Serial[:])
	noError(t, err)
	_, _, err = e.Certificate(t.Context(), x.Serial)
	wantKind(t, err, problem.Internal)
}
