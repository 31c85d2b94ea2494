package gateway

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
)

func ips(texts ...string) (out []net.IP) {
	for _, s := range texts {
		out = append(out, net.ParseIP(s))
	}
	return out
}

// csrParts takes a CSR apart, so that it can be put together wrongly.
type csrParts struct {
	Info      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

func alterCSR(t testing.TB, der []byte, alter func(*csrParts)) []byte {
	var p csrParts
	if _, err := asn1.Unmarshal(der, &p); err != nil {
		t.Fatal(err)
	}
	alter(&p)
	return must(asn1.Marshal(p))(t)
}

// replaceOnce puts bytes of the same length into a DER.
func replaceOnce(t testing.TB, der, old, with []byte) []byte {
	if bytes.Count(der, old) != 1 || len(old) != len(with) {
		t.Fatalf("%x is there %d times", old, bytes.Count(der, old))
	}
	return bytes.Replace(der, old, with, 1)
}

// rsaCSR makes a CSR for an RSA key that Go would not make, with a signature by
// another key: what is wrong with the key is found before the signature is checked.
func rsaCSR(t testing.TB, n, e *big.Int) []byte {
	spki := must(asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: must(asn1.Marshal(struct{ N, E *big.Int }{n, e}))(t), BitLength: 8 * len(must(asn1.Marshal(struct{ N, E *big.Int }{n, e}))(t))},
	}))(t)
	info := must(asn1.Marshal(struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes asn1.RawValue
	}{0, asn1.RawValue{FullBytes: []byte{0x30, 0}}, asn1.RawValue{FullBytes: spki}, asn1.RawValue{FullBytes: []byte{0xa0, 0}}}))(t)
	return must(asn1.Marshal(csrParts{
		Info:      asn1.RawValue{FullBytes: info},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		Signature: asn1.BitString{Bytes: make([]byte, 256), BitLength: 2048},
	}))(t)
}

// sanCSR asks for DNS names that Go's own encoder would refuse.
func sanCSR(t testing.TB, names ...string) []byte {
	var list []asn1.RawValue
	for _, n := range names {
		list = append(list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(n)})
	}
	return customCSR(t, nil, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier(oidSubjectAltName), Value: must(asn1.Marshal(list))(t)}}})
}

func extensionCSR(t testing.TB, id asn1.ObjectIdentifier, value any) []byte {
	return customCSR(t, nil, &x509.CertificateRequest{DNSNames: []string{"a.example.test"}, ExtraExtensions: []pkix.Extension{{Id: id, Critical: true, Value: must(asn1.Marshal(value))(t)}}})
}

func TestBadRequestsAreRefusedByFieldAndRule(t *testing.T) {
	w := newWorld(t)
	client, token := w.client(), w.idp.token(t, "alice")
	good := newCSR(t, nil, "a.example.test")
	key := newKey(t)
	point := must(key.PublicKey.Bytes())(t)
	offCurve := bytes.Clone(point)
	offCurve[len(offCurve)-1] ^= 1
	modulus := must(idpRSA())(t).N
	many := make([]string, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf("h%d.t", i)
	}
	manySmall := many[:2000] // within the size of a CSR

	type refusal struct {
		status      int
		field, rule string
	}
	csrCases := map[string]struct {
		body []byte
		want refusal
	}{
		"an empty body":                          {nil, refusal{400, "csr", "required"}},
		"text that is no CSR":                    {[]byte("hello"), refusal{400, "csr", "csr_encoding"}},
		"PEM cut short":                          {armour(good)[:200], refusal{400, "csr", "pem"}},
		"DER cut short":                          {good[:len(good)-10], refusal{400, "csr", "der"}},
		"a CSR beyond 64 KiB":                    {armour(bytes.Repeat([]byte{0x30}, 60<<10)), refusal{400, "csr", "csr_size"}},
		"a body beyond the limit":                {make([]byte, 129<<10), refusal{413, "body", "body_max"}},
		"data after the DER":                     {append(bytes.Clone(good), 0), refusal{400, "csr", "trailing_data"}},
		"text after the PEM":                     {append(armour(good), "tail"...), refusal{400, "csr", "trailing_data"}},
		"two PEM CSRs":                           {append(armour(good), armour(good)...), refusal{400, "csr", "one_csr"}},
		"two DER CSRs":                           {append(bytes.Clone(good), good...), refusal{400, "csr", "one_csr"}},
		"a certificate in place of a CSR":        {[]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"), refusal{400, "csr", "pem_type"}},
		"a signature by another key":             {alterCSR(t, good, func(p *csrParts) { p.Signature = mustSignatureOf(t, p.Info.FullBytes) }), refusal{400, "csr.signature", "signature"}},
		"no signature":                           {alterCSR(t, good, func(p *csrParts) { p.Signature = asn1.BitString{} }), refusal{400, "csr.signature", "signature_missing"}},
		"a SHA-1 signature":                      {alterCSR(t, good, func(p *csrParts) { p.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1} }), refusal{400, "csr.signature", "signature_hash"}},
		"an RSA key of 1024 bits":                {customCSR(t, weakRSA(t), &x509.CertificateRequest{DNSNames: []string{"a.example.test"}}), refusal{400, "csr.public_key", "rsa_min_2048"}},
		"an RSA key with an even exponent":       {rsaCSR(t, modulus, big.NewInt(65536)), refusal{400, "csr.public_key", "rsa_exponent_odd"}},
		"an RSA key with the exponent 3":         {rsaCSR(t, modulus, big.NewInt(3)), refusal{400, "csr.public_key", "rsa_exponent_range"}},
		"a P-224 key":                            {newCSR(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t), "a.example.test"), refusal{400, "csr.public_key", "ec_curve"}},
		"a point off its curve":                  {replaceOnce(t, newCSR(t, key, "a.example.test"), point, offCurve), refusal{400, "csr.public_key", "ec_point"}},
		"a name outside the caller's rights":     {newCSR(t, nil, "a.elsewhere.test"), refusal{403, "csr.names", "dns_not_allowed"}},
		"an address outside the caller's rights": {customCSR(t, nil, &x509.CertificateRequest{IPAddresses: ips("192.0.2.1")}), refusal{403, "csr.names", "ip_not_allowed"}},
		"a wildcard where none is allowed":       {newCSR(t, nil, "*.example.test"), refusal{403, "csr.names", "wildcard_not_allowed"}},
		"a NUL in a name":                        {sanCSR(t, "a.example.test\x00.evil.test"), refusal{400, "csr.names", "embedded_nul"}},
		"a name in Unicode":                      {sanCSR(t, "b\u00fccher.example.test"), refusal{400, "csr.names", "dns_idn"}},
		"10,000 names":                           {newCSR(t, nil, many...), refusal{400, "csr", "csr_size"}},
		"2,000 names":                            {newCSR(t, nil, manySmall...), refusal{400, "csr.names", "names_max"}},
		"no names":                               {customCSR(t, nil, &x509.CertificateRequest{}), refusal{400, "csr.names", "names_required"}},
		"a common name that is no name":          {customCSR(t, nil, &x509.CertificateRequest{Subject: named("b.example.test"), DNSNames: []string{"a.example.test"}}), refusal{400, "csr.subject", "cn_not_a_name"}},
		"CA:TRUE":                                {extensionCSR(t, asn1.ObjectIdentifier{2, 5, 29, 19}, struct{ CA bool }{true}), refusal{400, "csr.extensions", "ca_false"}},
		"keyCertSign":                            {extensionCSR(t, asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{0x04}, BitLength: 6}), refusal{400, "csr.extensions", "key_usage_ca"}},
	}
	for name, c := range csrCases {
		t.Run(name, func(t *testing.T) {
			r := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, body: c.body, token: token, client: client})
			r.expect(t, c.want.status, c.want.field, c.want.rule)
		})
	}

	asJSON := func(more string) []byte {
		return []byte(`{"csr":"` + base64.StdEncoding.EncodeToString(good) + `"` + more + `}`)
	}
	long := strings.Repeat("x", 129)
	requestCases := map[string]struct {
		call httpCall
		want refusal
	}{
		"a lifetime beyond the maximum":    {httpCall{path: "/v1/certificates?lifetime=8d", contentType: pemType, body: armour(good)}, refusal{400, "lifetime", "lifetime_max"}},
		"a lifetime below the minimum":     {httpCall{path: "/v1/certificates?lifetime=1s", contentType: pemType, body: armour(good)}, refusal{400, "lifetime", "lifetime_min"}},
		"a lifetime that is none":          {httpCall{path: "/v1/certificates?lifetime=long", contentType: pemType, body: armour(good)}, refusal{400, "lifetime", "duration"}},
		"a negative lifetime":              {httpCall{contentType: typeJSON, body: asJSON(`,"lifetime":"-5s"`)}, refusal{400, "lifetime", "lifetime_range"}},
		"a lifetime beyond all bounds":     {httpCall{contentType: typeJSON, body: asJSON(`,"lifetime":"60000d"`)}, refusal{400, "lifetime", "lifetime_range"}},
		"an unknown profile":               {httpCall{path: "/v1/certificates?profile=nope", contentType: pemType, body: armour(good)}, refusal{400, "profile", "profile_unknown"}},
		"missing metadata":                 {httpCall{path: "/v1/certificates?profile=owned", contentType: pemType, body: armour(good)}, refusal{400, "metadata.owner", "metadata_required"}},
		"metadata that is too long":        {httpCall{path: "/v1/certificates?owner=" + long, contentType: pemType, body: armour(good)}, refusal{400, "metadata.owner", "metadata_length"}},
		"an unknown parameter":             {httpCall{path: "/v1/certificates?profil=server", contentType: pemType, body: armour(good)}, refusal{400, "profil", "unknown_parameter"}},
		"a parameter given twice":          {httpCall{path: "/v1/certificates?profile=server&profile=owned", contentType: pemType, body: armour(good)}, refusal{400, "profile", "duplicate_parameter"}},
		"a parameter beside JSON":          {httpCall{path: "/v1/certificates?profile=server", contentType: typeJSON, body: asJSON("")}, refusal{400, "profile", "unknown_parameter"}},
		"a malformed query":                {httpCall{path: "/v1/certificates?profile=%zz", contentType: pemType, body: armour(good)}, refusal{400, "query", "query_syntax"}},
		"an unknown JSON field":            {httpCall{contentType: typeJSON, body: asJSON(`,"is_ca":true`)}, refusal{400, "is_ca", "unknown_field"}},
		"an unknown nested JSON field":     {httpCall{contentType: typeJSON, body: asJSON(`,"metadata":{"ownr":"x"}`)}, refusal{400, "metadata.ownr", "unknown_field"}},
		"a JSON field in camel case":       {httpCall{contentType: typeJSON, body: asJSON(`,"requestId":"x"`)}, refusal{400, "requestId", "unknown_field"}},
		"a JSON field given twice":         {httpCall{contentType: typeJSON, body: asJSON(`,"profile":"server","profile":"owned"`)}, refusal{400, "profile", "duplicate_field"}},
		"a JSON field of the wrong type":   {httpCall{contentType: typeJSON, body: asJSON(`,"profile":7`)}, refusal{400, "profile", "json_type"}},
		"a JSON CSR that is not base64":    {httpCall{contentType: typeJSON, body: []byte(`{"csr":"!!"}`)}, refusal{400, "csr", "base64"}},
		"no CSR in the JSON":               {httpCall{contentType: typeJSON, body: []byte(`{}`)}, refusal{400, "csr", "required"}},
		"data after the JSON":              {httpCall{contentType: typeJSON, body: append(asJSON(""), "{}"...)}, refusal{400, "body", "trailing_data"}},
		"JSON cut short":                   {httpCall{contentType: typeJSON, body: asJSON("")[:30]}, refusal{400, "body", "json_syntax"}},
		"JSON that is a list":              {httpCall{contentType: typeJSON, body: []byte(`[]`)}, refusal{400, "body", "json_type"}},
		"JSON that is not UTF-8":           {httpCall{contentType: typeJSON, body: []byte("{\"profile\":\"\xff\"}")}, refusal{400, "body", "utf8"}},
		"a wrong content type":             {httpCall{contentType: "text/html", body: armour(good)}, refusal{415, "content-type", "media_type"}},
		"no content type":                  {httpCall{body: armour(good)}, refusal{415, "content-type", "media_type"}},
		"another charset":                  {httpCall{contentType: "application/json; charset=utf-16", body: asJSON("")}, refusal{415, "content-type", "media_type"}},
		"a form that is no PEM":            {httpCall{contentType: formType, body: []byte("csr=x")}, refusal{415, "content-type", "media_type"}},
		"a compressed body":                {httpCall{contentType: pemType, header: http.Header{"Content-Encoding": {"gzip"}}, body: armour(good)}, refusal{415, "content-encoding", "content_encoding"}},
		"an answer that nobody can give":   {httpCall{contentType: pemType, header: http.Header{"Accept": {"image/png"}}, body: armour(good)}, refusal{406, "accept", "media_type"}},
		"an idempotency key that is long":  {httpCall{contentType: pemType, header: http.Header{"Idempotency-Key": {long}}, body: armour(good)}, refusal{400, "idempotency-key", "request_id_format"}},
		"two idempotency keys":             {httpCall{contentType: pemType, header: http.Header{"Idempotency-Key": {"a", "b"}}, body: armour(good)}, refusal{400, "idempotency-key", "request_id_format"}},
		"header and body keys that differ": {httpCall{contentType: typeJSON, header: http.Header{"Idempotency-Key": {"a"}}, body: asJSON(`,"request_id":"b"`)}, refusal{400, "idempotency-key", "request_id_format"}},
		"a request id with a line break":   {httpCall{contentType: typeJSON, body: asJSON(`,"request_id":"a\nb"`)}, refusal{400, "request_id", "request_id_format"}},
		"a preference to wait for nothing": {httpCall{contentType: pemType, header: http.Header{"Prefer": {"wait=0"}}, body: armour(good)}, refusal{400, "prefer", "wait"}},
		"an empty batch":                   {httpCall{path: "/v1/certificates:batch", contentType: typeJSON, body: []byte(`{"requests":[]}`)}, refusal{400, "requests", "required"}},
		"a batch of 257":                   {httpCall{path: "/v1/certificates:batch", contentType: typeJSON, body: []byte(`{"requests":[` + strings.Repeat(`{},`, 256) + `{}]}`)}, refusal{400, "requests", "batch_max"}},
		"a batch of 1,001":                 {httpCall{path: "/v1/certificates:batch", contentType: typeJSON, body: []byte(`{"requests":[` + strings.Repeat(`{},`, 1000) + `{}]}`)}, refusal{400, "requests", "list_max"}},
		"an unknown field deep in a batch": {httpCall{path: "/v1/certificates:batch", contentType: typeJSON, body: []byte(`{"requests":[{},{"metadata":{"x":1}}]}`)}, refusal{400, "requests[1].metadata.x", "unknown_field"}},
		"a batch in PEM":                   {httpCall{path: "/v1/certificates:batch", contentType: pemType, body: armour(good)}, refusal{415, "content-type", "media_type"}},
		"a path that is not there":         {httpCall{path: "/v1/certs", contentType: pemType}, refusal{404, "", ""}},
		"a method that is not there":       {httpCall{method: http.MethodPut, path: "/v1/certificates", contentType: pemType}, refusal{405, "method", "method"}},
		"a serial that is none":            {httpCall{method: http.MethodGet, path: "/v1/certificates/xyz"}, refusal{400, "serial", "serial_format"}},
		"a serial that was never issued":   {httpCall{method: http.MethodGet, path: "/v1/certificates/10000000000100000000000000000000"}, refusal{404, "", ""}},
		"a hold in place of a revocation":  {httpCall{path: "/v1/certificates/10000000000100000000000000000000/revoke", contentType: typeJSON, body: []byte(`{"reason":"REVOCATION_REASON_CERTIFICATE_HOLD"}`)}, refusal{400, "reason", "revocation_final"}},
		"an unknown reason":                {httpCall{path: "/v1/certificates/10000000000100000000000000000000:revoke", contentType: typeJSON, body: []byte(`{"reason":"WHIM"}`)}, refusal{400, "reason", "enum"}},
		"another serial in body and path":  {httpCall{path: "/v1/certificates/10000000000100000000000000000000/revoke", contentType: typeJSON, body: []byte(`{"serial":"11"}`)}, refusal{400, "serial", "serial_path"}},
		"an order that is no UUID":         {httpCall{method: http.MethodGet, path: "/v1/orders/7"}, refusal{400, "id", "order_id"}},
		"an order that is not there":       {httpCall{method: http.MethodGet, path: "/v1/orders/00000000-0000-4000-8000-000000000000"}, refusal{404, "", ""}},
		"a wait beyond the bound":          {httpCall{method: http.MethodGet, path: "/v1/orders/00000000-0000-4000-8000-000000000000?wait=31s"}, refusal{400, "wait", "wait_range"}},
		"two filters":                      {httpCall{method: http.MethodGet, path: "/v1/certificates?owner=a&caller=" + strings.ReplaceAll(w.idp.id("alice"), "#", "%23")}, refusal{400, "name", "one_filter"}},
		"a page that is too large":         {httpCall{method: http.MethodGet, path: "/v1/certificates?page_size=1001"}, refusal{400, "page_size", "page_size"}},
		"a time that is none":              {httpCall{method: http.MethodGet, path: "/v1/certificates?expires_before=soon"}, refusal{400, "expires_before", "time"}},
	}
	for name, c := range requestCases {
		t.Run(name, func(t *testing.T) {
			if c.call.method == "" {
				c.call.method = http.MethodPost
			}
			if c.call.path == "" {
				c.call.path = "/v1/certificates"
			}
			c.call.token, c.call.client = token, client
			r := w.do(t, c.call)
			r.expect(t, c.want.status, c.want.field, c.want.rule)
			if c.want.status == 405 && r.header.Get("Allow") != "GET, HEAD, POST" {
				t.Errorf("Allow is %q", r.header.Get("Allow"))
			}
		})
	}
	if n := w.signer.count(); n != 0 {
		t.Errorf("%d refused requests reached the signer", n)
	}
}

// mustSignatureOf signs with a key that is not the CSR's.
func mustSignatureOf(t testing.TB, info []byte) asn1.BitString {
	digest := sha256.Sum256(info)
	s := must(ecdsa.SignASN1(rand.Reader, newKey(t), digest[:]))(t)
	return asn1.BitString{Bytes: s, BitLength: 8 * len(s)}
}

func weakRSA(t testing.TB) *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 1024))(t) }
