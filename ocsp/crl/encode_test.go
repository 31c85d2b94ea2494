package crl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

const point = "http://crl.test/issuing-1/4-2.crl"

func TestACRLReadsBack(t *testing.T) {
	for kind := range algorithms {
		ca := newCA(t, kind, "CRL "+kind)
		for _, n := range []int{0, 1, 3, 20_000} { // 20,000 entries are four pieces
			t.Run(fmt.Sprintf("%s, %d entries", kind, n), func(t *testing.T) {
				entries := revocations(t, n, time.Now())
				for i := range entries { // the other form of a time
					if i%7 == 0 {
						entries[i].RevokedAt = time.Date(2051, 2, 3, 4, 5, 6, 0, time.UTC)
					}
				}
				der, made := ca.write(t, entries, point)
				list, err := x509.ParseRevocationList(der)
				noError(t, err)
				noError(t, list.CheckSignatureFrom(ca.cert))
				if list.Number.Int64() != 7 || !bytes.Equal(list.RawIssuer, ca.cert.RawSubject) || !bytes.Equal(list.AuthorityKeyId, ca.cert.SubjectKeyId) {
					t.Errorf("number %s, issuer %s", list.Number, list.Issuer)
				}
				if len(list.RevokedCertificateEntries) != n {
					t.Fatalf("%d entries", len(list.RevokedCertificateEntries))
				}
				for i, e := range list.RevokedCertificateEntries {
					want := entries[i]
					if e.SerialNumber.Cmp(want.Serial.Big()) != 0 || !e.RevocationTime.Equal(want.RevokedAt) || e.ReasonCode != int(want.Reason) {
						t.Fatalf("entry %d: %+v, want %+v", i, e, want)
					}
					if want.Reason == 0 && len(e.Extensions) > 0 {
						t.Fatal("an unspecified reason is written out")
					}
				}
				var outer asn1.RawValue
				if _, err := asn1.Unmarshal(der, &outer); err != nil || sha256.Sum256(outer.Bytes) != made.Digest {
					t.Error("the digest is not that of the contents")
				}
				if n > 10_000 && made.Chunks < 3 {
					t.Errorf("%d pieces", made.Chunks)
				}
			})
		}
	}
}

func TestAPartitionNamesItsPointCriticallyAndACompleteCRLNone(t *testing.T) {
	ca := newCA(t, "p256", "Points")
	idp := func(der []byte) (critical bool, uri string) {
		list, err := x509.ParseRevocationList(der)
		noError(t, err)
		for _, e := range list.Extensions {
			if e.Id.Equal(oidIssuingPoint) {
				var p struct {
					Name struct {
						Full []asn1.RawValue `asn1:"optional,tag:0"`
					} `asn1:"optional,tag:0"`
				}
				if _, err := asn1.Unmarshal(e.Value, &p); err != nil || len(p.Name.Full) != 1 {
					t.Fatalf("%x: %v", e.Value, err)
				}
				return e.Critical, string(p.Name.Full[0].Bytes)
			}
		}
		return false, ""
	}
	der, _ := ca.write(t, nil, point)
	if critical, uri := idp(der); !critical || uri != point {
		t.Errorf("critical %v, %q", critical, uri)
	}
	der, _ = ca.write(t, nil, "")
	if _, uri := idp(der); uri != "" {
		t.Errorf("a complete CRL is for %q", uri)
	}
}

func TestOtherEntriesThanCountedAreNoCRL(t *testing.T) {
	ca := newCA(t, "p256", "Count")
	entries := revocations(t, 9, time.Now())
	for name, change := range map[string]func(*Count){
		"one too few": func(c *Count) { c.Entries-- }, "one too many": func(c *Count) { c.Entries++ },
		"another reason": func(c *Count) { c.Unspecified++ }, "another time": func(c *Count) { c.Late++ },
	} {
		count := countOf(entries)
		change(&count)
		_, err := Write(t.Context(), ca.header(count, ""), ca.key, each(entries), func(int, []byte) error { return nil })
		if !errors.Is(err, errCount) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("full")
	_, err := Write(t.Context(), ca.header(countOf(entries), ""), ca.key, each(entries), func(int, []byte) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("no place for the pieces: %v", err)
	}
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	noError(t, os.WriteFile(path, data, 0o600))
	return path
}

func crlPEM(t *testing.T, name string, der []byte) string {
	return writeFile(t, name, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// revoked reports what a program says about a certificate; text must be in its answer.
func runs(t *testing.T, want bool, text string, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if (err == nil) != want || !strings.Contains(string(out), text) {
		t.Errorf("%s %s: %v\n%s\nwant success %v with %q", name, strings.Join(args, " "), err, out, want, text)
	}
}

func TestOpenSSLTakesTheCRLOfAShardForItsCertificatesOnly(t *testing.T) {
	openssl := testenv.Program(t, "openssl", "openssl")
	ca := newCA(t, "p256", "openssl CA")
	p := crldp.Point{URL: "http://crl.test/issuing-1/{shard}.crl", Shards: 4}
	bad, good := ca.leaf(t, time.Hour, p), ca.leaf(t, time.Hour, p)
	for bad.CRLDistributionPoints[0] != good.CRLDistributionPoints[0] {
		good = ca.leaf(t, time.Hour, p)
	}
	other := good
	for other.CRLDistributionPoints[0] == bad.CRLDistributionPoints[0] {
		other = ca.leaf(t, time.Hour, p)
	}
	n, err := serial.FromBig(bad.SerialNumber)
	noError(t, err)
	entries := []ledger.CRLEntry{{Serial: n, RevokedAt: time.Now(), Reason: 1}}
	root := ocsptest.WriteCertificate(t, "ca.pem", ca.cert)
	shard, _ := ca.write(t, entries, bad.CRLDistributionPoints[0])
	whole, _ := ca.write(t, entries, "")
	for _, c := range []struct {
		what string
		crl  []byte
		leaf *x509.Certificate
		ok   bool
		text string
	}{
		{"revoked", shard, bad, false, "certificate revoked"},
		{"good", shard, good, true, "OK"},
		{"another shard's", shard, other, false, "different CRL scope"},
		{"revoked in the complete one", whole, bad, false, "certificate revoked"},
		{"good in the complete one", whole, other, true, "OK"},
	} {
		t.Run(c.what, func(t *testing.T) {
			runs(t, c.ok, c.text, openssl, "verify", "-crl_check", "-CRLfile", crlPEM(t, "list.pem", c.crl), "-CAfile", root, ocsptest.WriteCertificate(t, "leaf.pem", c.leaf))
		})
	}
}

func TestStrongSwanAndGnuTLSTakeTheCRL(t *testing.T) {
	ca := newCA(t, "rsa", "pki CA")
	p := crldp.Point{URL: "http://crl.test/issuing-1.crl", Shards: 1}
	bad, good := ca.leaf(t, time.Hour, p), ca.leaf(t, time.Hour, p)
	n, err := serial.FromBig(bad.SerialNumber)
	noError(t, err)
	der, _ := ca.write(t, []ledger.CRLEntry{{Serial: n, RevokedAt: time.Now(), Reason: 4}}, "")
	root := ocsptest.WriteCertificate(t, "ca.pem", ca.cert)
	t.Run("pki", func(t *testing.T) {
		pki := testenv.Program(t, "pki", "strongswan-pki")
		list := writeFile(t, "list.crl", der)
		runs(t, false, "revoked", pki, "--verify", "--in", ocsptest.WriteCertificate(t, "bad.pem", bad), "--cacert", root, "--crl", list)
		runs(t, true, "trusted", pki, "--verify", "--in", ocsptest.WriteCertificate(t, "good.pem", good), "--cacert", root, "--crl", list)
		runs(t, true, "superseded", pki, "--print", "--type", "crl", "--in", list)
	})
	t.Run("certtool", func(t *testing.T) {
		certtool := testenv.Program(t, "certtool", "gnutls-bin")
		list := crlPEM(t, "list.pem", der)
		runs(t, true, "Verified.", certtool, "--verify-crl", "--load-ca-certificate", root, "--infile", list)
		runs(t, false, "revoked", certtool, "--verify", "--load-ca-certificate", root, "--load-crl", list, "--infile", ocsptest.WriteCertificate(t, "bad.pem", bad))
	})
}

// BenchmarkMillion is a CRL of a million entries without a ledger; peak-MB is the most
// that the heap grew meanwhile.
func BenchmarkMillion(b *testing.B) {
	ca := newCA(b, "p256", "Million")
	const many = 1_000_000
	at := time.Now().UTC().Truncate(time.Second)
	first := ocsptest.Serial(b, 1, at, at.Add(time.Hour))
	var bytesOut int64
	var peak uint64
	for b.Loop() {
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		made, err := Write(b.Context(), ca.header(Count{Entries: many}, ""), ca.key, func(add func(ledger.CRLEntry) error) error {
			e := ledger.CRLEntry{Serial: first, RevokedAt: at, Reason: 1}
			for i := range many {
				e.Serial[13], e.Serial[14], e.Serial[15] = byte(i>>16), byte(i>>8), byte(i)
				if err := add(e); err != nil {
					return err
				}
			}
			return nil
		}, func(chunk int, der []byte) error {
			if chunk%16 == 0 {
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
			}
			return nil
		})
		noError(b, err)
		bytesOut = made.Bytes
	}
	b.ReportMetric(float64(bytesOut)/1e6, "MB")
	b.ReportMetric(float64(peak)/1e6, "peak-MB")
}
