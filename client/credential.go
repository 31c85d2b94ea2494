package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// credential is what a connection shows. held, where there is one, goes before the files.
type credential struct {
	certFile, keyFile, tokenFile string
	held                         *tls.Certificate
}

// check finds at once what every connection would find.
func (c credential) check() error {
	if c.tokenFile != "" {
		if _, err := readToken(c.tokenFile); err != nil {
			return err
		}
	}
	_, err := c.clientCertificate(nil)
	return err
}

// clientCertificate implements tls.Config.GetClientCertificate. A certificate that is
// over is not shown: the gateway would refuse the handshake, and with it the token.
func (c credential) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	switch {
	case c.held != nil && time.Now().Before(c.held.Leaf.NotAfter):
		return c.held, nil
	case c.certFile == "":
		return &tls.Certificate{}, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the client certificate: %w", err)
	}
	if c.tokenFile != "" && time.Now().After(pair.Leaf.NotAfter) {
		return &tls.Certificate{}, nil
	}
	return &pair, nil
}

// maxToken bounds a token's file.
const maxToken = 64 << 10

// enrollmentPrefix marks enrollment tokens, of which a use is spent for each
// certificate; JSON Web Tokens begin otherwise.
const enrollmentPrefix = "cmt_"

func readToken(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(token) > maxToken || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("%s holds no token", file)
	}
	return token, nil
}

// tokenFile puts the token that is in the file now into every call; only over TLS.
type tokenFile string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (f tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := readToken(string(f))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (tokenFile) RequireTransportSecurity() bool { return true }

var errNoCredential = errors.New("a token, or a client certificate with its key, is needed for the first certificate")
