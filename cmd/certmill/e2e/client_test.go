package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goclient "github.com/certmill/certmill/client"
)

// TestAnApplicationKeepsItsIdentity uses the Go client as an application does: enrolled
// by a token, it speaks mTLS with itself, is told to renew early, and is refused when
// its certificate has been revoked.
func TestAnApplicationKeepsItsIdentity(t *testing.T) {
	s := dev(t)
	request, _ := unique("app")
	name := "spiffe://certmill.test/ns/test/sa/" + request
	var made struct{ Secret string }
	s.runJSON(t, &made, "token", "create", "--profile", "workload", "--name", "uri:"+name)
	token := filepath.Join(t.TempDir(), "token")
	writeFile(t, token, []byte(made.Secret))
	cfg := goclient.Config{Gateway: s.setting(t, "gateway", "grpc_listen"), ServerName: "localhost", CAFile: s.file("root.pem"), TokenFile: token}
	id, err := goclient.Open(t.Context(), cfg, goclient.Request{Profile: "workload", URIs: []string{name}})
	if err != nil {
		t.Fatal(err)
	}
	defer id.Close()
	if err := shake(id.ServerTLS(goclient.AllowURI(name)), id.ClientTLS(goclient.AllowURI(name))); err != nil {
		t.Errorf("mTLS with itself: %v", err)
	}

	// The certificate alone is credential enough from here on.
	files := filepath.Join(t.TempDir(), "c")
	holder := cfg
	holder.TokenFile, holder.CertFile, holder.KeyFile = "", files+".pem", files+".key"
	writeFile(t, holder.CertFile, []byte(id.Certificate().PEM))
	writeFile(t, holder.KeyFile, encoded(t, id.Certificate().TLS.PrivateKey))
	c, err := goclient.New(holder)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before, err := c.RenewalInfo(t.Context(), "")
	if err != nil || !before.RenewAt.AsTime().Equal(id.Certificate().RenewAt) {
		t.Fatalf("the advice is %v, %v; with the certificate it was %s", before, err, id.Certificate().RenewAt)
	}
	if out, err := s.run(t, "renew-early", "--holder", "uri:"+name, "--before", "10m", "--reason", "a test"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, 30*time.Second, func() error {
		after, err := c.RenewalInfo(t.Context(), "")
		if err == nil && (after.Reason != "a test" || time.Until(after.RenewAt.AsTime()) > 10*time.Minute) {
			err = fmt.Errorf("the advice is still %v", after)
		}
		return err
	})
	if out, err := s.run(t, "renew-early", "list"); err != nil || !strings.Contains(out, name) {
		t.Errorf("%v\n%s", err, out)
	}

	if out, err := s.run(t, "revoke", id.Certificate().Serial, "--reason", "superseded"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, 30*time.Second, func() error { // what was known good is remembered for seconds
		_, err := c.Issue(t.Context(), goclient.Request{Profile: "workload", URIs: []string{name}})
		if !errors.Is(err, &goclient.Error{Kind: goclient.Unauthenticated, Rule: "revoked"}) {
			return fmt.Errorf("with a revoked certificate: %w", err)
		}
		return nil
	})
}

// encoded returns a private key as PEM.
func encoded(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// shake makes one mTLS handshake.
func shake(server, client *tls.Config) error {
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return err
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, err = conn.Write([]byte("x")) // handshakes first
			_ = conn.Close()
		}
		done <- err
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", listener.Addr().String(), client)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	} else {
		_ = listener.Close()
	}
	return errors.Join(err, <-done)
}
