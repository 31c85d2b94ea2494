package main

import (
	"context"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"math/rand/v2"
	"net/url"
	"strconv"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ocsp"
)

// realEvery is which certificates have a real signature for check to verify, and
// revokedEvery which are revoked: those have one too, since a responder verifies them.
// The others have one of the same form: signing a million takes a minute.
const (
	realEvery    = 1000
	revokedEvery = 100
)

// world is a CA with certificates.
type world struct {
	issuer   *x509.Certificate
	template *ocsp.Template
	sign     func([]byte) ([]byte, error)
	serials  []serial.Number
	request  []byte // an OCSPRequest whose last octets are the serial
}

// fill writes a record for each certificate.
func (w *world) fill(ctx context.Context, store *ocsp.Store) error {
	now := time.Now().Truncate(time.Second)
	items := make([]ocsp.Item, 0, 1000)
	for i, n := range w.serials {
		rec := ocsp.Record{Signer: 1, Status: ocsp.Status{
			ProducedAt: now.Unix(), ThisUpdate: now.Unix() - 300, NextUpdate: now.Unix() + 86400,
		}}
		if revoked(i) {
			rec.Revoked, rec.RevokedAt, rec.Reason = true, now.Unix()-60, 1
		}
		if err := w.signRecord(&rec, n, i%realEvery == 0 || rec.Revoked); err != nil {
			return err
		}
		encoded, err := rec.AppendTo(nil)
		if err != nil {
			return err
		}
		if items = append(items, ocsp.Item{Serial: n, Record: string(encoded)}); len(items) == cap(items) || i == len(w.serials)-1 {
			if err := store.Put(ctx, items); err != nil {
				return err
			}
			items = items[:0]
		}
	}
	return nil
}

func revoked(i int) bool { return i%revokedEvery == 1 }

func (w *world) signRecord(rec *ocsp.Record, n serial.Number, really bool) error {
	for h := range ocsp.Hashes {
		if !really {
			var sig [64]byte
			_, _ = crand.Read(sig[:]) // never fails
			rec.Signatures[h] = string(sig[:])
			continue
		}
		input, _ := w.template.SigningInput(w.template.AppendData(nil, h, n, &rec.Status))
		sig, err := w.sign(input)
		if err != nil {
			return err
		}
		if rec.Signatures[h], err = w.template.CompactSignature(sig); err != nil {
			return err
		}
	}
	return nil
}

// requestFor returns the OCSPRequest for a certificate.
func (w *world) requestFor(i int) []byte {
	out := append([]byte(nil), w.request...)
	copy(out[len(out)-serial.Size:], w.serials[i][:])
	return out
}

// makeRequest builds the request that all share but for the serial.
func (w *world) makeRequest() error {
	n := w.serials[0]
	der, err := xocsp.CreateRequest(&x509.Certificate{SerialNumber: n.Big()}, w.issuer, nil)
	w.request = der
	return err
}

func (w *world) get(i int) []byte {
	return []byte("GET /" + url.QueryEscape(base64.StdEncoding.EncodeToString(w.requestFor(i))) + " HTTP/1.1\r\nHost: ocsp.test\r\n\r\n")
}

func (w *world) post(i int) []byte {
	der := w.requestFor(i)
	return append([]byte("POST / HTTP/1.1\r\nHost: ocsp.test\r\nContent-Type: application/ocsp-request\r\nContent-Length: "+strconv.Itoa(len(der))+"\r\n\r\n"), der...)
}

// skewed chooses 90 % from the first tenth of n, which is as random as any tenth.
func skewed(n int) func(*rand.Rand) int {
	return func(r *rand.Rand) int {
		if r.IntN(10) != 0 {
			return r.IntN(n / 10)
		}
		return r.IntN(n)
	}
}

func uniform(n int) func(*rand.Rand) int { return func(r *rand.Rand) int { return r.IntN(n) } }
