package csr

import (
	"bytes"
	"crypto"

	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/testenv"
)

func armour(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestParseReadsWhatItAccepts(t *testing.T) {
	key := p256(t)
	der := forge{
		key:     key,
		subject: slices.Concat(rdn(oid(2, 5, 4, 10), asn1.PrintableString, "An Organization"), cn("Zoë")),
		extension: [][]byte{
			san(dns("A.Example.TEST"), dns("a.example.test"), dns("*.w.example.test"), dns("xn--bcher-kva.example.test"),
				name(7, "\xc0\x00\x02\x01"), name(7, string(netip.MustParseAddr("2001:db8::1").AsSlice())),
				name(6, "spiffe://certmill.test/ns/a/sa/B"), name(1, "Jo.Do+x@Example.test")),
			critical(oid(2, 5, 29, 15), []byte{3, 2, 7, 0x80}),       // digitalSignature
			extension(oid(2, 5, 29, 19), []byte{0x30, 0}),            // CA:FALSE
			extension(oid(1, 3, 6, 1, 4, 1, 99999, 1), []byte{5, 0}), // unknown, not critical
		},
	}.make(t)
	for form, data := range map[string][]byte{
		"DER": der, "PEM": armour(der),
		"PEM with the old label and white space": append([]byte("\n  "), bytes.ReplaceAll(armour(der), []byte("CERTIFICATE REQ"), []byte("NEW CERTIFICATE REQ"))...),
	} {
		t.Run(form, func(t *testing.T) {
			r, err := Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.DER, der) || r.SHA256 != sha256.Sum256(der) {
				t.Error("DER or its hash differ")
			}
			if r.KeyType != ECDSAP256 || !key.PublicKey.Equal(r.PublicKey) {
				t.Errorf("key is %s", r.KeyType)
			}
			got := fmt.Sprintln(r.CommonName, r.DNSNames, r.IPAddresses, r.URIs, r.Emails)
			want := "Zoë [a.example.test *.w.example.test xn--bcher-kva.example.test] [192.0.2.1 2001:db8::1] [spiffe://certmill.test/ns/a/sa/B] [Jo.Do+x@example.test]\n"
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			agree(t, r)
		})
	}
}

// agree checks that crypto/x509 reads the request as we do, and returns its reading.
func agree(t *testing.T, r *Request) *x509.CertificateRequest {
	t.Helper()
	x, err := x509.ParseCertificateRequest(r.DER)
	if err != nil {
		t.Fatalf("crypto/x509 refuses what we accept: %v", err)
	}
	if !bytes.Equal(x.RawSubjectPublicKeyInfo, r.SPKI) || x.Subject.CommonName != r.CommonName {
		t.Errorf("crypto/x509 sees another key or common name: %q, %q", x.Subject.CommonName, r.CommonName)
	}
	var names []string
	for _, d := range x.DNSNames {
		names = append(names, lowerASCII(d))
	}
	for _, ip := range x.IPAddresses {
		a, _ := netip.AddrFromSlice(ip)
		names = append(names, a.String())
	}
	for _, u := range x.URIs {
		names = append(names, u.String())
	}
	for _, e := range x.EmailAddresses {
		names = append(names, lowerDomain(e))
	}
	ours := slices.Concat(r.DNSNames, r.Emails)
	for _, s := range r.URIs {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, u.String())
	}
	for _, ip := range r.IPAddresses {
		ours = append(ours, ip.String())
	}
	slices.Sort(names)
	slices.Sort(ours)
	if !slices.Equal(slices.Compact(names), slices.Compact(ours)) {
		t.Errorf("crypto/x509 sees other names: %q, we %q", names, ours)
	}
	return x
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParseAcceptsEveryKeyAndSignature(t *testing.T) {
	key2048 := rsaKey(t, 2048)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key  crypto.Signer
		alg  x509.SignatureAlgorithm
		want KeyType
	}{
		{p256(t), x509.ECDSAWithSHA256, ECDSAP256},
		{p256(t), x509.ECDSAWithSHA512, ECDSAP256},
		{generate(t, elliptic.P384()), x509.ECDSAWithSHA384, ECDSAP384},
		{ed, x509.PureEd25519, Ed25519},
		{key2048, x509.SHA256WithRSA, RSA2048},
		{key2048, x509.SHA384WithRSA, RSA2048},
		{key2048, x509.SHA512WithRSA, RSA2048},
		{key2048, x509.SHA256WithRSAPSS, RSA2048},
		{key2048, x509.SHA384WithRSAPSS, RSA2048},
		{key2048, x509.SHA512WithRSAPSS, RSA2048},
	} {
		t.Run(c.alg.String(), func(t *testing.T) {
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: c.alg, DNSNames: []string{"a.test"}}, c.key)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Parse(der)
			if err != nil {
				t.Fatal(err)
			}
			if r.KeyType != c.want || KeyTypeOf(r.PublicKey) != c.want {
				t.Errorf("key type %s, want %s", r.KeyType, c.want)
			}
			agree(t, r)
		})
	}
}

// What Read refuses is nothing that could be verified: an algorithm of another key type
// leaves no digest, and without one anybody can sign.
func TestReadReturnsNothingWithAnError(t *testing.T) {
	other := forge{key: p256(t), algorithm: der(asn1.SEQUENCE, oid(1, 2, 840, 113549, 1, 1, 11), der(asn1.NULL))}.make(t)
	for _, request := range [][]byte{nil, {0x30, 0}, other} {
		if u, err := Read(request); u != nil || err == nil {
			t.Errorf("%x: %v, %v", request, u, err)
		}
	}
}

// Requests of all kinds, some of them signed by another key, in groups: what is proven is
// what Verify proves, and its own request.
func TestWhatIsProvenTogetherVerifies(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := []crypto.Signer{p256(t), p256(t), generate(t, elliptic.P384()), ed, rsaKey(t, 2048), p256(t), p256(t)}
	for n := range 20 {
		var all []*Unverified
		for i := range n {
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{fmt.Sprintf("w%d.test", i)}}, keys[(i+n)%len(keys)])
			if err != nil {
				t.Fatal(err)
			}
			if i%5 == n%5 {
				der[len(der)-1] ^= 1
			}
			u, err := Read(der)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, u)
		}
		proven := Proven(all)
		if len(proven) != n {
			t.Fatalf("%d results for %d requests", len(proven), n)
		}
		batchable := 0
		for _, u := range all {
			if u.Batchable() {
				batchable++
			}
		}
		for i, r := range proven {
			alone, err := all[i].Verify()
			if (err != nil) != (i%5 == n%5) {
				t.Errorf("%d of %d: %v", i, n, err)
			}
			if r != nil && r != alone {
				t.Errorf("%d of %d is proven, but alone %v", i, n, err)
			}
			// The last one of many may be left over.
			if r == nil && err == nil && all[i].Batchable() && batchable%8 != 1 {
				t.Errorf("%d of %d is not proven", i, n)
			}
			if r != nil && r.DNSNames[0] != fmt.Sprintf("w%d.test", i) {
				t.Errorf("%d of %d is the request for %s", i, n, r.DNSNames[0])
			}
		}
	}
}

// TestParseAcceptsOpenSSL: openssl leaves out the hash's NULL in PSS, for one.
func TestParseAcceptsOpenSSL(t *testing.T) {
	openssl := testenv.Program(t, "openssl", "openssl")
	for name, args := range map[string]string{
		"P-256":   "-newkey ec -pkeyopt ec_paramgen_curve:P-256",
		"Ed25519": "-newkey ed25519",
		"RSA":     "-newkey rsa:2048",
		"PSS":     "-newkey rsa:2048 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "csr.pem")
			args := append(strings.Fields("req -new -nodes -keyout /dev/null -out "+file+" "+args),
				"-subj", "/O=Example/CN=a.test", "-addext", "subjectAltName=DNS:a.test,IP:192.0.2.1", "-addext", "basicConstraints=critical,CA:FALSE")
			if out, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
				t.Fatalf("openssl: %v\n%s", err, out)
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			if r.CommonName != "a.test" || len(r.DNSNames) != 1 || len(r.IPAddresses) != 1 {
				t.Errorf("read %+v", r)
			}
		})
	}
}

// spki of an RSA key, whatever its numbers.
func spkiRSA(n, e *big.Int) []byte {
	return der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 2, 840, 113549, 1, 1, 1), null),
		bitString(der(asn1.SEQUENCE, integer(n), integer(e))))
}

func integer(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0] >= 0x80 {
		b = append([]byte{0}, b...)
	}
	return der(asn1.INTEGER, b)
}

func spkiEC(curve []byte, point []byte) []byte {
	return der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 2, 840, 10045, 2, 1), curve), bitString(point))
}

func odd(bits uint) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return n.Add(n, big.NewInt(1))
}

var (
	curveP256 = oid(1, 2, 840, 10045, 3, 1, 7)
	e65537    = big.NewInt(65537)
)

func TestParseRefuses(t *testing.T) {
	key := p256(t)
	good := forge{key: key, extension: [][]byte{san(dns("a.test"))}}.make(t)
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	off := slices.Clone(point)
	off[64] ^= 1
	names := func(list ...[]byte) []byte { return forge{key: key, extension: [][]byte{san(list...)}}.make(t) }
	extensions := func(list ...[]byte) []byte { return forge{key: key, extension: list}.make(t) }
	subject := func(parts ...[]byte) []byte { return forge{key: key, subject: slices.Concat(parts...)}.make(t) }
	keyed := func(spki []byte) []byte { return forge{key: key, spki: spki}.make(t) }
	algorithm := func(parts ...[]byte) []byte {
		return forge{key: key, algorithm: der(asn1.SEQUENCE, parts...)}.make(t)
	}
	var many [][]byte
	for range 10_000 {
		many = append(many, dns("a"))
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name        string
		data        []byte
		field, rule string
	}{
		{"nothing", nil, "csr", "csr_missing"},
		{"text", []byte("hello"), "csr", "csr_encoding"},
		{"text before the PEM block", append([]byte("Certificate Request:\n"), armour(good)...), "csr", "csr_encoding"},
		{"more than 64 KiB", make([]byte, MaxBytes+1), "csr", "csr_size"},
		{"truncated DER", good[:len(good)-1], "csr", "der"},
		{"truncated inside", good[:20], "csr", "der"},
		{"truncated PEM", armour(good)[:200], "csr", "pem"},
		{"damaged base64", bytes.Replace(armour(good), []byte("MI"), []byte("M!"), 1), "csr", "pem"},
		{"damaged block before a good one", append([]byte("-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n"), armour(good)...), "csr", "one_csr"},
		{"PEM of a certificate", bytes.ReplaceAll(armour(good), []byte("CERTIFICATE REQUEST"), []byte("CERTIFICATE")), "csr", "pem_type"},
		{"PEM with headers", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: good}), "csr", "pem_headers"},
		{"two PEM requests", append(armour(good), armour(good)...), "csr", "one_csr"},
		{"two DER requests", append(slices.Clone(good), good...), "csr", "one_csr"},
		{"bytes after the DER", append(slices.Clone(good), 0), "csr", "trailing_data"},
		{"text after the PEM", append(armour(good), "x"...), "csr", "trailing_data"},
		{"bytes in the PEM after the DER", armour(append(slices.Clone(good), 0)), "csr", "trailing_data"},
		{"bytes after the signature", forge{key: key, tail: null}.make(t), "csr", "trailing_data"},
		{"bytes after the attributes", forge{key: key, infoTail: null}.make(t), "csr", "trailing_data"},
		{"an indefinite length", append([]byte{0x30, 0x80}, good[4:]...), "csr", "der"},
		{"a certificate's structure", der(asn1.SEQUENCE, der(asn1.SEQUENCE, null)), "csr", "der"},
		{"version 1", forge{key: key, version: 1}.make(t), "csr", "csr_version"},

		{"no signature", forge{key: key, spoil: func([]byte) []byte { return nil }}.make(t), "csr.signature", "signature_missing"},
		{"no signature field", der(asn1.SEQUENCE, der(asn1.SEQUENCE), der(asn1.SEQUENCE)), "csr.signature", "signature_missing"},
		{"a wrong signature", forge{key: key, spoil: func(s []byte) []byte { s[len(s)-1] ^= 1; return s }}.make(t), "csr.signature", "signature"},
		{"another key's signature", forge{key: p256(t), spki: spkiEC(curveP256, point)}.make(t), "csr.signature", "signature"},
		{"ECDSA with SHA-1", algorithm(oid(1, 2, 840, 10045, 4, 1)), "csr.signature", "signature_hash"},
		{"RSA with SHA-1", algorithm(oid(1, 2, 840, 113549, 1, 1, 5), null), "csr.signature", "signature_hash"},
		{"RSA with MD5", algorithm(oid(1, 2, 840, 113549, 1, 1, 4), null), "csr.signature", "signature_hash"},
		{"PSS with its SHA-1 defaults", algorithm(oid(1, 2, 840, 113549, 1, 1, 10), der(asn1.SEQUENCE)), "csr.signature", "signature_algorithm"},
		{"an unknown signature algorithm", algorithm(oid(1, 2, 3, 4)), "csr.signature", "signature_algorithm"},
		{"a signature algorithm with stray parameters", algorithm(oid(1, 2, 840, 10045, 4, 3, 2), null), "csr.signature", "signature_algorithm"},
		{"an algorithm of another key type", algorithm(oid(1, 2, 840, 113549, 1, 1, 11), null), "csr.signature", "signature_algorithm"},
		{"ECDSA's algorithm on an Ed25519 key", forge{key: ed, opts: crypto.Hash(0)}.make(t), "csr.signature", "signature_algorithm"},

		{"RSA 1024", keyed(spkiRSA(odd(1024), e65537)), "csr.public_key", "rsa_min_2048"},
		{"RSA 2047", keyed(spkiRSA(odd(2047), e65537)), "csr.public_key", "rsa_min_2048"},
		{"RSA 8192", keyed(spkiRSA(odd(8192), e65537)), "csr.public_key", "rsa_max_4096"},
		{"RSA 2056", keyed(spkiRSA(odd(2056), e65537)), "csr.public_key", "rsa_size"},
		{"RSA with an even modulus", keyed(spkiRSA(new(big.Int).Lsh(big.NewInt(1), 2047), e65537)), "csr.public_key", "rsa_modulus"},
		{"RSA with an even exponent", keyed(spkiRSA(odd(2048), big.NewInt(65538))), "csr.public_key", "rsa_exponent_odd"},
		{"RSA with exponent 0", keyed(spkiRSA(odd(2048), new(big.Int))), "csr.public_key", "rsa_exponent_odd"},
		{"RSA with exponent 3", keyed(spkiRSA(odd(2048), big.NewInt(3))), "csr.public_key", "rsa_exponent_range"},
		{"RSA with a huge exponent", keyed(spkiRSA(odd(2048), odd(40))), "csr.public_key", "rsa_exponent_range"},
		{"RSA without NULL parameters", keyed(der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 2, 840, 113549, 1, 1, 1)), bitString(der(asn1.SEQUENCE, integer(odd(2048)), integer(e65537))))), "csr.public_key", "key_encoding"},
		{"P-224", forge{key: generate(t, elliptic.P224())}.make(t), "csr.public_key", "ec_curve"},
		{"P-521", forge{key: generate(t, elliptic.P521())}.make(t), "csr.public_key", "ec_curve"},
		{"explicit curve parameters", keyed(spkiEC(der(asn1.SEQUENCE, null), point)), "csr.public_key", "ec_named_curve"},
		{"a point off the curve", keyed(spkiEC(curveP256, off)), "csr.public_key", "ec_point"},
		{"a compressed point", keyed(spkiEC(curveP256, elliptic.MarshalCompressed(elliptic.P256(), key.X, key.Y))), "csr.public_key", "ec_point_uncompressed"},
		{"the point at infinity", keyed(spkiEC(curveP256, []byte{0})), "csr.public_key", "ec_point_uncompressed"},
		{"a P-384 point on P-256", keyed(spkiEC(curveP256, append([]byte{4}, make([]byte, 96)...))), "csr.public_key", "ec_point"},
		{"an Ed25519 key of order 1", keyed(der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 3, 101, 112)), bitString(append([]byte{1}, make([]byte, 31)...)))), "csr.public_key", "ed25519_order"},
		{"an Ed25519 key of order 4, x negative", keyed(der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 3, 101, 112)), bitString(append(make([]byte, 31), 0x80)))), "csr.public_key", "ed25519_order"},
		{"a short Ed25519 key", keyed(der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 3, 101, 112)), bitString(make([]byte, 31)))), "csr.public_key", "key_encoding"},
		{"DSA", keyed(der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 2, 840, 10040, 4, 1)), bitString([]byte{2, 1, 5}))), "csr.public_key", "key_type"},
		{"a key with unused bits", keyed(der(asn1.SEQUENCE, der(asn1.SEQUENCE, oid(1, 3, 101, 112)), der(asn1.BIT_STRING, []byte{1}, make([]byte, 32)))), "csr.public_key", "key_encoding"},

		{"CA:TRUE after CA:FALSE", extensions(critical(oid(2, 5, 29, 19), []byte{0x30, 6, 1, 1, 0, 1, 1, 0xff})), "csr", "der"},
		{"CA:TRUE", extensions(critical(oid(2, 5, 29, 19), []byte{0x30, 3, 1, 1, 0xff})), "csr.extensions", "ca_false"},
		{"keyCertSign", extensions(extension(oid(2, 5, 29, 15), []byte{3, 2, 2, 0x84})), "csr.extensions", "key_usage_ca"},
		{"cRLSign", extensions(extension(oid(2, 5, 29, 15), []byte{3, 2, 1, 0x02})), "csr.extensions", "key_usage_ca"},
		{"a damaged key usage", extensions(extension(oid(2, 5, 29, 15), null)), "csr", "der"},
		{"an unknown critical extension", extensions(critical(oid(1, 2, 3), null)), "csr.extensions", "extension_critical"},
		{"name constraints", extensions(critical(oid(2, 5, 29, 30), der(asn1.SEQUENCE))), "csr.extensions", "extension_critical"},
		{"the same extension twice", extensions(san(dns("a.test")), san(dns("b.test"))), "csr.extensions", "extension_duplicate"},
		{"33 extensions", extensions(manyExtensions(33)...), "csr.extensions", "extension_count"},
		{"the same attribute twice", forge{key: key, attributes: bytes.Repeat(attribute(extensionRequest, der(asn1.SEQUENCE, san(dns("a.test")))), 2)}.make(t), "csr.attributes", "attribute_duplicate"},
		{"17 attributes", forge{key: key, attributes: manyAttributes(17)}.make(t), "csr.attributes", "attribute_count"},
		{"two extension requests in one attribute", forge{key: key, attributes: attribute(extensionRequest, der(asn1.SEQUENCE), der(asn1.SEQUENCE))}.make(t), "csr", "der"},

		{"an empty SAN extension", names(), "csr.names", "names_empty"},
		{"101 names", names(many[:101]...), "csr.names", "names_max"},
		{"10,000 names", names(many...), "csr.names", "names_max"},
		{"an otherName", names(der(asn1.Tag(0).Constructed().ContextSpecific(), oid(1, 3, 6, 1, 4, 1, 311, 20, 2, 3), der(asn1.Tag(0).Constructed().ContextSpecific(), der(asn1.UTF8String, []byte("u@x"))))), "csr.names", "names_kind"},
		{"a directoryName", names(der(asn1.Tag(4).Constructed().ContextSpecific(), der(asn1.SEQUENCE))), "csr.names", "names_kind"},
		{"a registeredID", names(name(8, "\x2a\x03")), "csr.names", "names_kind"},
		{"an embedded NUL", names(dns("a.test\x00.evil.test")), "csr.names", "embedded_nul"},
		{"an embedded NUL in an email", names(name(1, "a@a.test\x00.evil.test")), "csr.names", "embedded_nul"},
		{"an embedded NUL in a URI", names(name(6, "spiffe://a.test/\x00")), "csr.names", "embedded_nul"},
		{"an IDN in UTF-8", names(dns("bücher.test")), "csr.names", "dns_idn"},
		{"the Kelvin sign", names(dns("bin\u212a.test")), "csr.names", "dns_idn"},
		{"an IDN in an email", names(name(1, "a@bücher.test")), "csr.names", "email_idn"},
		{"an IDN in a URI", names(name(6, "https://bücher.test/")), "csr.names", "uri_idn"},
		{"an IP address of 3 bytes", names(name(7, "abc")), "csr.names", "ip_length"},
		{"an IP address with its mask", names(name(7, "\x0a\x00\x00\x00\xff\x00\x00\x00")), "csr.names", "ip_length"},
		{"IPv4 in 16 bytes", names(name(7, string(netip.MustParseAddr("::ffff:10.0.0.1").AsSlice()))), "csr.names", "ip_mapped"},
		{"a URI without a scheme", names(name(6, "//a.test/x")), "csr.names", "uri_scheme"},

		{"two common names", subject(cn("a"), cn("b")), "csr.subject", "cn_single"},
		{"a common name of 65 characters", subject(cn(strings.Repeat("é", 65))), "csr.subject", "cn_max_64"},
		{"a NUL in the common name", subject(cn("a.test\x00.evil.test")), "csr.subject", "cn_control"},
		{"a change of writing direction", subject(cn("a\u202etset.b")), "csr.subject", "cn_control"},
		{"an empty common name", subject(cn("")), "csr.subject", "cn_empty"},
		{"a space before the common name", subject(cn(" a")), "csr.subject", "cn_spaces"},
		{"bytes that are not UTF-8", subject(cn("a\xff")), "csr.subject", "subject_string"},
		{"an underscore in a PrintableString", subject(rdn(oid(2, 5, 4, 3), asn1.PrintableString, "a_b")), "csr.subject", "subject_string"},
		{"a BMPString", subject(rdn(oid(2, 5, 4, 3), asn1.Tag(30), "\x00a")), "csr.subject", "subject_string"},
		{"an empty set in the subject", subject(der(asn1.SET)), "csr", "der"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.data)
			if !errors.Is(err, &problem.Error{Kind: problem.Invalid, Field: c.field, Rule: c.rule}) {
				t.Errorf("got %v, want field %s and rule %s", err, c.field, c.rule)
			}
		})
	}
}

func manyExtensions(n int) (list [][]byte) {
	for i := range n {
		list = append(list, extension(oid(1, 2, 3, i), null))
	}
	return list
}

func manyAttributes(n int) (list []byte) {
	for i := range n {
		list = append(list, attribute(oid(1, 2, 3, i), null)...)
	}
	return list
}

// TestRefusalIsCheap: a hostile request must not cost a signature check.
func TestRefusalIsCheap(t *testing.T) {
	var many [][]byte
	for i := range 5000 {
		many = append(many, dns(fmt.Sprintf("n%d.test", i)))
	}
	hostile := forge{extension: [][]byte{san(many...)}}.make(t)
	if len(hostile) > MaxBytes {
		t.Fatalf("the request has %d bytes, so it tests the size limit", len(hostile))
	}
	allocs := testing.AllocsPerRun(10, func() {
		if _, err := Parse(hostile); err == nil {
			t.Error("accepted")
		}
	})
	if allocs > 3*MaxNames {
		t.Errorf("%v allocations to refuse 5,000 names", allocs)
	}
}

// FuzzParse holds what is read against crypto/x509's reading. The signature is left
// out of that, since nearly no mutation would get past it.
func FuzzParse(f *testing.F) {
	key := p256(f)
	f.Add(forge{key: key, subject: cn("a"), extension: [][]byte{san(dns("a.test"), name(6, "spiffe://a.test/b"), name(1, "a@b.test"), name(7, "abcd"))}}.make(f))
	f.Add(armour(forge{key: key}.make(f)))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, parseErr := Parse(data)
		der, err := unwrap(data)
		var r *Request
		if err == nil {
			r, _, err = read(der)
		}
		if parseErr != nil {
			if e := problem.From(parseErr); e.Kind != problem.Invalid || e.Field == "" || e.Rule == "" {
				t.Fatalf("an error without kind, field or rule: %v", parseErr)
			}
		} else if err != nil {
			t.Fatalf("Parse accepts what read refuses: %v", err)
		}
		if err == nil {
			agree(t, r)
		}
	})
}

// FuzzNames feeds the names behind the signature, where FuzzParse does not get.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"a.test", "*.a.test", "xn--bcher-kva.test", "spiffe://a.test/b", "https://a.test:1/b?c", "urn:a:b", "a.b+c@d.test"} {
		f.Add([]byte(s))
	}
	key := p256(f)
	f.Fuzz(func(t *testing.T, s []byte) {
		for _, tag := range []uint8{1, 2, 6, 7} {
			r := new(Request)
			if err := readName(r, s, asn1.Tag(tag).ContextSpecific()); err != nil {
				if e := problem.From(err); e.Kind != problem.Invalid || e.Field != namesField || e.Rule == "" {
					t.Fatalf("an error without kind, field or rule: %v", err)
				}
				continue
			}
			r, err := Parse(forge{key: key, extension: [][]byte{san(name(tag, string(s)))}}.make(t))
			if err != nil {
				t.Fatal(err)
			}
			agree(t, r)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for name, key := range map[string]crypto.Signer{"P256": p256(b), "RSA2048": rsaKey(b, 2048)} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example.test", "b.example.test"}}, key)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(der); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkParseOnly is Parse without the check of the signature.
func BenchmarkParseOnly(b *testing.B) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example.test", "b.example.test"}}, p256(b))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := read(der); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSmallOrderKeysProveNothing: what is refused is refused because a signature that
// nobody made fits it, and every such key is.
func TestSmallOrderKeysProveNothing(t *testing.T) {
	forged := append([]byte{1}, make([]byte, 63)...) // R = 1, S = 0
	for y := range smallOrderY {
		for _, sign := range []byte{0, 0x80} {
			key := y
			key[31] |= sign
			if !smallOrder(key[:]) {
				t.Errorf("%x is accepted", key)
			}
			fits := 0
			for i := range 400 {
				if ed25519.Verify(key[:], []byte{byte(i), byte(i >> 8)}, forged) {
					fits++
				}
			}
			if fits == 0 {
				t.Errorf("%x is refused without a reason", key)
			}
		}
	}
}
