package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// testCA is a gateway that can be told how to behave; what the real one does is tested
// with the built binary, in cmd/certmill/e2e.
type testCA struct {
	certmillv1.UnimplementedCertificateAuthorityServer
	dir, address string
	life         time.Duration
	server       *grpc.Server

	mu      sync.Mutex
	roots   []root
	issuer  root // one of them
	serials int64
	refuse  func(*certmillv1.IssueRequest) error // asked before a certificate is made
	after   func(*certmillv1.IssueRequest) error // asked when it is made: the answer is lost
	renewAt func(serial string) time.Time        // of RenewalInfo
	made    map[string]*certmillv1.Certificate   // by request id
	asked   []ask
}

// ask is one Issue as it came.
type ask struct {
	id, csr, token string
	shown          *x509.Certificate
	at             time.Time
}

type root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t testing.TB, life time.Duration) *testCA {
	t.Helper()
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := startCA(dir, life)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ca.server.Stop(); _ = os.RemoveAll(dir) })
	return ca
}

// startCA serves a CA whose root is in dir/roots.pem, with a token in dir/token.
func startCA(dir string, life time.Duration) (*testCA, error) {
	ca := &testCA{dir: dir, life: life, made: map[string]*certmillv1.Certificate{}}
	if err := ca.newRoot(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(ca.file("roots.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.roots[0].cert.Raw}), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(ca.file("token"), []byte("a.web.token\n"), 0o600); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ca.address = listener.Addr().String()
	ca.serve(listener)
	return ca, nil
}

func (ca *testCA) file(name string) string { return filepath.Join(ca.dir, name) }

func (ca *testCA) serve(listener net.Listener) {
	ca.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return nil, err
			}
			der, err := ca.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, key.Public(), time.Hour)
			return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
		},
		ClientAuth: tls.RequestClientCert,
	})))
	certmillv1.RegisterCertificateAuthorityServer(ca.server, ca)
	go func() { _ = ca.server.Serve(listener) }()
}

// newRoot begins a root beside those that are there.
func (ca *testCA) newRoot() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: fmt.Sprint("root ", time.Now().UnixNano())},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.roots = append(ca.roots, root{cert, key})
	if len(ca.roots) == 1 {
		ca.issuer = ca.roots[0]
	}
	return err
}

func (ca *testCA) sign(template *x509.Certificate, key any, life time.Duration) ([]byte, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.serials++
	r := ca.issuer
	template.SerialNumber = big.NewInt(ca.serials)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Second), time.Now().Add(life)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return x509.CreateCertificate(rand.Reader, template, r.cert, key, r.key)
}

func (ca *testCA) Issue(ctx context.Context, in *certmillv1.IssueRequest) (*certmillv1.IssueResponse, error) {
	a := ask{id: in.RequestId, csr: string(in.Csr), at: time.Now()}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			a.shown = info.State.PeerCertificates[0]
		}
	}
	if v := metadata.ValueFromIncomingContext(ctx, "authorization"); len(v) > 0 {
		a.token = v[0]
	}
	ca.mu.Lock()
	ca.asked = append(ca.asked, a)
	refuse, after := ca.refuse, ca.after
	ca.mu.Unlock()
	if refuse != nil {
		if err := refuse(in); err != nil {
			return nil, problem.ToStatus(err).Err()
		}
	}
	cert, err := ca.issue(in)
	if err == nil && after != nil {
		err = after(in)
	}
	if err != nil {
		return nil, problem.ToStatus(err).Err()
	}
	return &certmillv1.IssueResponse{Certificate: cert}, nil
}

func (ca *testCA) issue(in *certmillv1.IssueRequest) (*certmillv1.Certificate, error) {
	ca.mu.Lock()
	known := ca.made[in.RequestId]
	ca.mu.Unlock()
	if known != nil {
		return known, nil
	}
	csr, err := x509.ParseCertificateRequest(in.Csr)
	if err != nil {
		return nil, problem.Rejected("csr", "der", "not a CSR")
	}
	der, err := ca.sign(&x509.Certificate{URIs: csr.URIs, DNSNames: csr.DNSNames}, csr.PublicKey, ca.life)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	cert := &certmillv1.Certificate{
		Serial: fmt.Sprint(leaf.SerialNumber), Der: der, RenewAt: timestamppb.New(time.Now().Add(ca.life / 2)),
		Pem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.made[in.RequestId] = cert
	return cert, nil
}

func (ca *testCA) GetTrustBundle(context.Context, *certmillv1.GetTrustBundleRequest) (*certmillv1.TrustBundle, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	out := &certmillv1.TrustBundle{}
	for _, r := range ca.roots {
		out.Roots = append(out.Roots, r.cert.Raw)
	}
	return out, nil
}

func (ca *testCA) GetRenewalInfo(_ context.Context, in *certmillv1.GetRenewalInfoRequest) (*certmillv1.RenewalInfo, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.renewAt == nil {
		return nil, problem.ToStatus(problem.New(problem.NotFound, "no advice")).Err()
	}
	return &certmillv1.RenewalInfo{Serial: in.Serial, RenewAt: timestamppb.New(ca.renewAt(in.Serial)), Reason: "test"}, nil
}

func (ca *testCA) set(change func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	change()
}

func (ca *testCA) asks() []ask {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return append([]ask(nil), ca.asked...)
}

func (ca *testCA) config() Config {
	return Config{Gateway: ca.address, CAFile: ca.file("roots.pem"), TokenFile: ca.file("token")}
}
