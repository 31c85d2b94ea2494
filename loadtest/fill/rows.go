package fill

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net/url"
	"slices"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// maker makes rows as a mesh leaves them: a SPIFFE ID that is the caller and the only
// name, a day's P-256 certificate without revocation. Size and variety are a
// certificate's; the certificates themselves verify under no key.
type maker struct {
	cfg    Config
	issuer int32
	epoch  uint32
	der    []byte // of a real certificate
	serial int    // where its serial is in der
	point  int    // where its public key is
	points [][]byte
	spkis  [][sha256.Size]byte // the hashes of the SubjectPublicKeyInfos with these points
	noise  []int               // the places in der that are random in every certificate
	began  time.Time
}

// newMaker takes an active issuer of the ledger and starts an epoch for the rows, so
// that the ledger's account of signatures and rows holds.
func newMaker(ctx context.Context, book *ledger.Ledger, cfg Config) (*maker, error) {
	issuers, err := book.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(issuers, func(i ledger.Issuer) bool { return i.State == "active" })
	if i < 0 {
		return nil, errors.New("the ledger has no active issuer")
	}
	m := &maker{cfg: cfg, issuer: issuers[i].ID, began: time.Now().UTC().Truncate(time.Second)}
	if m.epoch, err = book.StartEpoch(ctx, ledger.Epoch{Signer: "loadtest-fill", Issuer: m.issuer, Token: "none"}); err != nil {
		return nil, err
	}
	for range keys {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		m.points = append(m.points, spki[spkiHead:])
		m.spkis = append(m.spkis, sha256.Sum256(spki))
	}
	return m, m.sample()
}

const (
	// keys is how many different ones the certificates have: a point that is on no curve
	// would not be read.
	keys = 512
	// spkiHead is what stands before the point in the SubjectPublicKeyInfo of a P-256 key
	// (RFC 5480).
	spkiHead = 26
)

// end reports the rows as signatures of their epoch.
func (m *maker) end(ctx context.Context, book *ledger.Ledger, rows int64) error {
	return book.ReportEpoch(ctx, m.epoch, ledger.EpochReport{Signatures: rows, Committed: rows, Final: true})
}

// sample makes one certificate and finds what differs from one to the next in it.
func (m *maker) sample() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	id, err := url.Parse(workload(0))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(slices.Repeat([]byte{0x5a}, serial.Size)), Issuer: pkix.Name{CommonName: "certmill issuing"},
		NotBefore: m.began, NotAfter: m.began.Add(m.cfg.Lifetime), URIs: []*url.URL{id},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		AuthorityKeyId: slices.Repeat([]byte{0xa5}, 20), SubjectKeyId: slices.Repeat([]byte{0xa6}, 20),
	}
	parent := *template
	parent.SubjectKeyId = template.AuthorityKeyId
	if m.der, err = x509.CreateCertificate(rand.Reader, template, &parent, key.Public(), key); err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(m.der)
	if err != nil {
		return err
	}
	if m.serial = bytes.Index(m.der, template.SerialNumber.Bytes()); m.serial < 0 {
		return errors.New("the sample certificate's serial is not in it")
	}
	if m.point = bytes.Index(m.der, cert.RawSubjectPublicKeyInfo[spkiHead:]); m.point < 0 {
		return errors.New("the sample certificate's key is not in it")
	}
	// The key's identifier and the two numbers of the signature.
	for _, part := range [][]byte{cert.SubjectKeyId, cert.Signature[8:36], cert.Signature[44:]} {
		at := bytes.Index(m.der, part)
		if at < 0 {
			return errors.New("a part of the sample certificate is not in it")
		}
		for i := range part {
			m.noise = append(m.noise, at+i)
		}
	}
	return nil
}

func workload(n int64) string {
	return fmt.Sprintf("spiffe://certmill.test/ns/fleet-%03d/sa/workload-%09d", n%512, n)
}

// entries appends the rows first to end, without end.
func (m *maker) entries(to []ledger.Entry, first, end int64) ([]ledger.Entry, error) {
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, err
	}
	random := mathrand.NewChaCha8(seed)
	for n := first; n < end; n++ {
		e, err := m.entry(n, random)
		if err != nil {
			return nil, err
		}
		to = append(to, e)
	}
	return to, nil
}

func (m *maker) entry(n int64, random *mathrand.ChaCha8) (ledger.Entry, error) {
	age := time.Duration(float64(m.cfg.Over) * (1 - float64(n+1)/float64(m.cfg.Rows)))
	notBefore := m.began.Add(-age).Truncate(time.Second)
	number, err := serial.New(random, m.epoch, notBefore, notBefore.Add(m.cfg.Lifetime))
	if err != nil {
		return ledger.Entry{}, err
	}
	der := slices.Clone(m.der)
	octets := make([]byte, len(m.noise)+16+sha256.Size)
	_, _ = random.Read(octets) // it never fails
	for i, at := range m.noise {
		der[at] = octets[i]
	}
	copy(der[m.serial:], number[:])
	copy(der[m.point:], m.points[n%keys])
	name := workload(n % m.cfg.Workloads)
	rest := octets[len(m.noise):]
	return ledger.Entry{
		Certificate: ledger.Certificate{
			Serial: number, Issuer: m.issuer, Profile: "workload", ProfileVersion: "f111f111f111",
			Names: []string{"uri:" + name}, SPKI: m.spkis[n%keys], Caller: "mtls:" + name,
			NotBefore: notBefore, NotAfter: notBefore.Add(m.cfg.Lifetime), DER: der,
		},
		RequestKey: ledger.RequestKey(rest[:16]), CSR: [sha256.Size]byte(rest[16:]),
		ReuseUntil: notBefore.Add(24 * time.Hour),
	}, nil
}
