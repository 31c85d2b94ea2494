package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ocsp"
)

const epoch = 1

// newWorld makes a CA, an OCSP signer and the serials of n certificates of 90 days.
func newWorld(n int) (*world, error) {
	now := time.Now().Truncate(time.Second)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Bench CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if ca, err = create(ca, ca, caKey, caKey); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := create(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Bench OCSP"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 1, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
	}, ca, key, caKey)
	if err != nil {
		return nil, err
	}
	issuer, err := ocsp.NewIssuer(1, ca)
	if err != nil {
		return nil, err
	}
	template, err := ocsp.NewTemplate(1, issuer, signer)
	if err != nil {
		return nil, err
	}
	w := &world{issuer: ca, template: template, serials: make([]serial.Number, n)}
	w.sign = func(digest []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, key, digest) }
	for i := range w.serials {
		if w.serials[i], err = serial.New(rand.Reader, epoch, now, now.AddDate(0, 0, 90)); err != nil {
			return nil, err
		}
	}
	return w, w.makeRequest()
}

func create(template, parent *x509.Certificate, key, caKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// share writes what all answers have in common, and that Redis is complete.
func (w *world) share(ctx context.Context, store *ocsp.Store) error {
	err := store.PutShared(ctx, &ocsp.Shared{
		Issuers: map[int32][]byte{1: w.issuer.Raw},
		Signers: map[int32]ocsp.SharedSigner{1: {Issuer: 1, DER: w.template.Signer.Raw}},
		Epochs:  map[uint32]int32{epoch: 1},
	})
	if err != nil {
		return err
	}
	generation, err := store.Generation(ctx)
	if err != nil {
		return err
	}
	_, err = store.Swept(ctx, generation, 1, []int{0})
	return err
}

// check holds answers of the responder to x/crypto: status, serial and signature of
// those that are really signed.
func (w *world) check(addr string) error {
	for i := range w.serials {
		if i%realEvery > 1 { // real ones, and revoked ones beside them
			continue
		}
		want := xocsp.Good
		if revoked(i) {
			want = xocsp.Revoked
		}
		resp, err := http.Post("http://"+addr, "application/ocsp-request", bytes.NewReader(w.requestFor(i)))
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it was read
		if err != nil {
			return err
		}
		got, err := xocsp.ParseResponseForCert(body, &x509.Certificate{SerialNumber: w.serials[i].Big()}, w.issuer)
		if err != nil || got.Status != want {
			return fmt.Errorf("certificate %d: %+v, %w", i, got, err)
		}
	}
	return nil
}

// children feeds the bare handler: a line for each certificate with request and answer.
func (w *world) children() io.Reader {
	r, out := io.Pipe()
	go func() {
		rec := ocsp.Record{Signer: 1, Status: ocsp.Status{ProducedAt: 2, ThisUpdate: 1, NextUpdate: 3}}
		rec.Signatures[ocsp.SHA1] = string(bytes.Repeat([]byte{0x42}, 64))
		var answer, line []byte
		var err error
		for i, n := range w.serials {
			if answer, err = w.template.AppendResponse(answer[:0], ocsp.SHA1, n, &rec); err != nil {
				break
			}
			line = base64.StdEncoding.AppendEncode(line[:0], w.requestFor(i))
			line = append(line, ' ')
			line = append(base64.StdEncoding.AppendEncode(line, answer), '\n')
			if _, err = out.Write(line); err != nil {
				break
			}
		}
		_ = out.CloseWithError(err)
	}()
	return r
}
