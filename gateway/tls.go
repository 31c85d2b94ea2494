package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// tlsFiles keeps the server's side of TLS up to date with its files and the issuers.
// Handshakes take one pointer; nothing is read while they wait.
type tlsFiles struct {
	cfg  TLS
	log  *slog.Logger
	now  func() time.Time
	live atomic.Pointer[tls.Config]

	mu      sync.Mutex // guards the fields below
	stamp   []fileStamp
	cert    tls.Certificate
	clients []*x509.Certificate // of client_ca_files
	issuers []*x509.Certificate // of the ledger
}

type fileStamp struct {
	size    int64
	changed time.Time
}

// load reads the files; the error names the key that is wrong.
func (f *tlsFiles) load() error {
	stamp, err := f.stamps()
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(f.cfg.CertFile, f.cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("tls.cert_file and tls.key_file: %w", err)
	}
	var clients []*x509.Certificate
	for _, name := range f.cfg.ClientCAFiles {
		more, err := readCertificates(name)
		if err != nil {
			return fmt.Errorf("tls.client_ca_files: %w", err)
		}
		clients = append(clients, more...)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stamp, f.cert, f.clients = stamp, cert, clients
	f.publish()
	for _, c := range clients {
		f.log.Info("client certificates are taken from another CA", "subject", c.Subject.String(), "until", c.NotAfter, "caller_ids", "mtls:"+caPrefix(c)+"…")
	}
	return nil
}

// setIssuers makes client certificates of our own issuers acceptable.
func (f *tlsFiles) setIssuers(certs []*x509.Certificate) {
	if !f.cfg.OwnClients {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if sameCertificates(f.issuers, certs) {
		return
	}
	f.issuers = certs
	f.publish()
}

// publish makes the configuration for handshakes. Client certificates are asked for
// and verified, and not required: callers may have a token instead. Our issuers are
// trusted directly and their roots are not, so that another CA under the same root
// cannot name our callers. The caller holds mu.
func (f *tlsFiles) publish() {
	if f.cert.Certificate == nil {
		return // before load
	}
	pool := x509.NewCertPool()
	for _, c := range f.clients {
		pool.AddCert(c)
	}
	for _, c := range f.issuers {
		pool.AddCert(c)
	}
	f.live.Store(&tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{f.cert},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool,
		Time:         f.now,
		NextProtos:   []string{"h2", "http/1.1"},
	})
}

// config returns the configuration for a listener, which follows every change.
func (f *tlsFiles) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return f.live.Load(), nil
		},
	}
}

// run looks for changed files until ctx ends. Files that cannot be used leave the
// last good ones in place.
func (f *tlsFiles) run(ctx context.Context) {
	tick := time.NewTicker(f.cfg.Reload)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if changed, err := f.changed(); err != nil || !changed {
			continue // a file that is being replaced is looked at again
		}
		if err := f.load(); err != nil {
			f.log.Error("changed TLS files cannot be used; the old ones stay in use", "error", err)
			continue
		}
		f.log.Info("TLS files were read again")
	}
}

func (f *tlsFiles) changed() (bool, error) {
	now, err := f.stamps()
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range now {
		if now[i].size != f.stamp[i].size || !now[i].changed.Equal(f.stamp[i].changed) {
			return true, nil
		}
	}
	return false, nil
}

func (f *tlsFiles) stamps() ([]fileStamp, error) {
	names := append([]string{f.cfg.CertFile, f.cfg.KeyFile}, f.cfg.ClientCAFiles...)
	stamps := make([]fileStamp, 0, len(names))
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("looking at a TLS file: %w", err)
		}
		stamps = append(stamps, fileStamp{info.Size(), info.ModTime()})
	}
	return stamps, nil
}

func readCertificates(name string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	certs, err := parsePEMCertificates(data)
	if err == nil && len(certs) == 0 {
		err = errors.New("it holds no certificate")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return certs, nil
}

func sameCertificates(a, b []*x509.Certificate) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}
