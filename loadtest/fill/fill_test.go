package fill

import (
	"bytes"
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestTheLedgerIsFilledWithRowsThatItReads(t *testing.T) {
	ctx := t.Context()
	where := config.Ledger{URL: testenv.PostgreSQL(t), MaxConnections: 4}
	if err := ledger.Migrate(ctx, where); err != nil {
		t.Fatal(err)
	}
	book, err := ledger.Open(ctx, where, ledger.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	cfg := Config{Ledger: where, Rows: 1000, Lifetime: 24 * time.Hour, Over: 4 * 24 * time.Hour, Workloads: 100, Writers: 2}
	if _, err := Run(ctx, cfg, nil); err == nil {
		t.Fatal("a ledger without an issuer was filled")
	}
	if _, err := book.PutIssuer(ctx, ledger.Issuer{Name: "issuing", State: "active", DER: []byte("der"), Chain: [][]byte{[]byte("root")}, KeyURI: "pkcs11:object=x"}); err != nil {
		t.Fatal(err)
	}
	var most int64
	r, err := Run(ctx, cfg, func(done, _ int64) { most = max(most, done) })
	if err != nil || r.Rows != 1000 || most != 1000 {
		t.Fatalf("%d rows, told of %d, %v", r.Rows, most, err)
	}
	// A caller has as many as there are renewals of a workload.
	page, _, err := book.List(ctx, ledger.Filter{Caller: "mtls:" + workload(7)}, "", 100)
	if err != nil || len(page) != 10 {
		t.Fatalf("%d certificates of a caller, %v", len(page), err)
	}
	seen := map[string]bool{}
	for _, l := range page {
		c, err := x509.ParseCertificate(l.DER)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.SerialNumber.Bytes(), l.Serial[:]) || len(l.Names) != 1 || l.Names[0] != "uri:"+workload(7) {
			t.Errorf("the row %+v holds the certificate %s", l.Certificate, c.SerialNumber)
		}
		if seen[string(c.Signature)] {
			t.Error("two certificates have one signature")
		}
		seen[string(c.Signature)] = true
	}
	epochs, err := book.Epochs(ctx)
	if err != nil || len(epochs) != 1 || epochs[0].Signatures != 1000 || epochs[0].Committed != 1000 || !epochs[0].Final {
		t.Errorf("epochs %+v, %v: rows and signatures do not add up", epochs, err)
	}
	table := map[string]ledger.TableStorage{}
	storage := func() bool { // PostgreSQL counts rows a moment later
		sizes, err := book.Storage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sizes {
			table[s.Table] = s
		}
		return table["certificates"].Rows == 1000
	}
	for deadline := time.Now().Add(20 * time.Second); !storage() && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
	if c := table["certificates"]; c.Rows != 1000 || c.Bytes < 1000*500 || len(c.Indexes) < 3 || c.Total() <= c.Bytes {
		t.Errorf("the storage of certificates is %+v", c)
	}
}

func TestWhatCannotBeFilledIsRefused(t *testing.T) {
	good := Config{Rows: 1, Lifetime: time.Hour, Over: time.Hour, Workloads: 1, Writers: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no rows":       func(c *Config) { c.Rows = 0 },
		"no workloads":  func(c *Config) { c.Workloads = 0 },
		"no lifetime":   func(c *Config) { c.Lifetime = 0 },
		"no time":       func(c *Config) { c.Over = 0 },
		"no writers":    func(c *Config) { c.Writers = 0 },
		"a crowd of 65": func(c *Config) { c.Writers = 65 },
	} {
		c := good
		spoil(&c)
		if _, err := Run(context.Background(), c, nil); err == nil {
			t.Errorf("%s: it ran", name)
		}
	}
}
