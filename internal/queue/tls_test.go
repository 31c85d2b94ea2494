package queue_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/queue"
)

// pki is a CA with one certificate that serves as server and as client, as files.
type pki struct{ ca, cert, key string }

func newPKI(t *testing.T) pki {
	t.Helper()
	caKey := newKey(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leafKey := newKey(t)
	p := pki{ca: filepath.Join(t.TempDir(), "ca.pem"), cert: filepath.Join(t.TempDir(), "cert.pem"), key: filepath.Join(t.TempDir(), "key.pem")}
	for _, c := range []struct {
		file string
		of   *x509.Certificate
		key  *ecdsa.PrivateKey
	}{{p.ca, ca, caKey}, {p.cert, leaf, leafKey}} {
		der, err := x509.CreateCertificate(rand.Reader, c.of, ca, &c.key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, c.file, "CERTIFICATE", der)
	}
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, p.key, "PRIVATE KEY", der)
	return p
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startBroker runs a NATS server with JetStream that wants TLS with a client
// certificate, changed by configure.
func startBroker(t *testing.T, p pki, configure func(*server.Options)) string {
	t.Helper()
	conf, err := server.GenTLSConfig(&server.TLSConfigOpts{CertFile: p.cert, KeyFile: p.key, CaFile: p.ca, Verify: true})
	if err != nil {
		t.Fatal(err)
	}
	conf.MinVersion = tls.VersionTLS13
	o := &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: t.TempDir(), TLS: true, TLSVerify: true, TLSConfig: conf, TLSTimeout: 5,
	}
	configure(o)
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the broker is not ready")
	}
	return strings.Replace(s.ClientURL(), "nats://", "tls://", 1)
}

// TestAnExternalBrokerByTLSAndCredentials connects as a role does to a broker that
// wants TLS, a client certificate, and a user: an nkey, or a JWT from a credentials file.
func TestAnExternalBrokerByTLSAndCredentials(t *testing.T) {
	p := newPKI(t)
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := user.PublicKey()
	seed, _ := user.Seed()
	seedFile := filepath.Join(t.TempDir(), "user.nk")
	if err := os.WriteFile(seedFile, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	byNKey := startBroker(t, p, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} })

	operator, credentials, account := newOperator(t, public, seed)
	byJWT := startBroker(t, p, func(o *server.Options) {
		o.TrustedOperators, o.SystemAccount = []*jwt.OperatorClaims{operator}, operator.SystemAccount
		o.AccountResolver = account
	})

	good := connection(t, "")
	good.CAFile, good.CertFile, good.KeyFile = p.ca, p.cert, p.key
	with := func(change func(*config.NATS)) config.NATS {
		c := good
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		cfg config.NATS
		up  bool
	}{
		"an nkey over mutual TLS":    {with(func(c *config.NATS) { c.URL, c.NKeyFile = byNKey, seedFile }), true},
		"a user JWT over mutual TLS": {with(func(c *config.NATS) { c.URL, c.CredsFile = byJWT, credentials }), true},
		"no credential":              {with(func(c *config.NATS) { c.URL = byNKey }), false},
		"no client certificate":      {with(func(c *config.NATS) { c.URL, c.NKeyFile, c.CertFile, c.KeyFile = byNKey, seedFile, "", "" }), false},
		"a broker of another CA":     {with(func(c *config.NATS) { c.URL, c.NKeyFile, c.CAFile = byNKey, seedFile, newPKI(t).ca }), false},
		"plain text to a TLS broker": {with(func(c *config.NATS) {
			c.URL, c.NKeyFile, c.CAFile, c.CertFile, c.KeyFile = strings.Replace(byNKey, "tls://", "nats://", 1), seedFile, "", "", ""
		}), false},
	} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t, c.cfg)
			within := 10 * time.Second
			if !c.up {
				within = 700 * time.Millisecond // several tries
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			err := conn.Wait(ctx)
			if (err == nil) != c.up {
				t.Errorf("connected: %v (%v)", err == nil, err)
			}
			if err == nil {
				if err := queue.EnsureStreams(ctx, conn.JetStream, conn.Settings); err != nil {
					t.Errorf("the streams: %v", err)
				}
			}
		})
	}
}

// newOperator makes an operator with one account that has JetStream, and credentials
// for a user in it.
func newOperator(t *testing.T, user string, seed []byte) (operator *jwt.OperatorClaims, credsFile string, resolver server.AccountResolver) {
	t.Helper()
	opKey, _ := nkeys.CreateOperator()
	accKey, _ := nkeys.CreateAccount()
	sysKey, _ := nkeys.CreateAccount()
	opPub, _ := opKey.PublicKey()
	accPub, _ := accKey.PublicKey()
	sysPub, _ := sysKey.PublicKey()
	operator = jwt.NewOperatorClaims(opPub)
	operator.SystemAccount = sysPub
	token, err := operator.Encode(opKey)
	if err != nil {
		t.Fatal(err)
	}
	if operator, err = jwt.DecodeOperatorClaims(token); err != nil {
		t.Fatal(err)
	}
	memory := &server.MemAccResolver{}
	account := jwt.NewAccountClaims(accPub)
	account.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	for public, claims := range map[string]*jwt.AccountClaims{accPub: account, sysPub: jwt.NewAccountClaims(sysPub)} {
		token, err := claims.Encode(opKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := memory.Store(public, token); err != nil {
			t.Fatal(err)
		}
	}
	token, err = jwt.NewUserClaims(user).Encode(accKey)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	credsFile = filepath.Join(t.TempDir(), "user.creds")
	if err := os.WriteFile(credsFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return operator, credsFile, memory
}
