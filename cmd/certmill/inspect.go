package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/client"
	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func inspectCommand() *cobra.Command {
	var offline bool
	c := &cobra.Command{
		Use:   "inspect <certificate file | CSR file | serial | ->",
		Short: "Show a certificate or a CSR, and what the ledger knows of it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in, err := readSubject(c, args[0])
			if err != nil {
				return err
			}
			if in.request != nil {
				return inspectCSR(c, in.request)
			}
			if offline {
				if in.certificate == nil {
					return usage("--offline needs a file: only the ledger knows what belongs to a serial")
				}
				return inspectOffline(c, in, "")
			}
			return inspectOnline(c, in)
		},
	}
	c.Flags().BoolVar(&offline, "offline", false, "do not ask a gateway")
	addContextFlags(c)
	return c
}

// subject is what a person named: a CSR, a certificate, or a serial.
type subject struct {
	request     *csr.Request
	certificate *x509.Certificate
	serial      serial.Number
	foreign     error // why the certificate's serial is none of ours
}

// readSubject reads a file or a serial in hexadecimal.
func readSubject(c *cobra.Command, arg string) (subject, error) {
	if _, err := os.Stat(arg); err != nil && arg != "-" {
		n, err := serial.Parse(arg)
		if err != nil {
			return subject{}, usage("%s is neither a file nor a serial of certmill (%w)", arg, err)
		}
		return subject{serial: n}, nil
	}
	data, err := readInput(c, arg)
	if err != nil {
		return subject{}, err
	}
	der := data
	if block, _ := pem.Decode(data); block != nil {
		if block.Type != "CERTIFICATE" {
			request, err := csr.Parse(data)
			return subject{request: request}, err
		}
		der = block.Bytes
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		if request, csrErr := csr.Parse(data); csrErr == nil {
			return subject{request: request}, nil
		}
		return subject{}, problem.Rejected(arg, "not_a_certificate", "neither a certificate nor a CSR: %v", err)
	}
	s := subject{certificate: certificate}
	s.serial, s.foreign = serial.FromBig(certificate.SerialNumber)
	return s, nil
}

func inspectCSR(c *cobra.Command, r *csr.Request) error {
	names := []string{}
	for _, n := range r.DNSNames {
		names = append(names, "dns:"+n)
	}
	for _, ip := range r.IPAddresses {
		names = append(names, "ip:"+ip.String())
	}
	for _, u := range r.URIs {
		names = append(names, "uri:"+u)
	}
	for _, e := range r.Emails {
		names = append(names, "email:"+e)
	}
	spki := sha256.Sum256(r.SPKI)
	value := map[string]any{
		"kind": "csr", "common_name": r.CommonName, "names": names, "key_type": fmt.Sprint(r.KeyType),
		"spki_sha256": hex.EncodeToString(spki[:]), "csr_sha256": hex.EncodeToString(r.SHA256[:]),
	}
	return newPrinter(c).result(value, func(w *writer) {
		w.line("certificate signing request; its proof of possession is right")
		w.line("common name   %s", r.CommonName)
		w.line("names         %s", strings.Join(names, ", "))
		w.line("key           %v", r.KeyType)
		w.line("key sha256    %x", spki)
	})
}

// inspectOnline asks the ledger. A certificate in hand is shown even when nobody
// answers; a bare serial then is a failure.
func inspectOnline(c *cobra.Command, in subject) error {
	if in.foreign != nil {
		return inspectOffline(c, in, "not issued by certmill: "+in.foreign.Error())
	}
	var found *certmillv1.Certificate
	err := withGateway(c, func(ctx context.Context, g *client.Client) error {
		return g.Retry(ctx, func(ctx context.Context) (err error) {
			found, err = g.GetCertificate(ctx, &certmillv1.GetCertificateRequest{Serial: in.serial.String()})
			return err
		})
	})
	switch {
	case err == nil && in.certificate != nil && !bytes.Equal(found.GetDer(), in.certificate.Raw):
		return inspectOffline(c, in, "the ledger has ANOTHER certificate under this serial: this one is forged")
	case err == nil:
		return newPrinter(c).result(found, func(w *writer) { certificateText(w, found) })
	case in.certificate == nil:
		return err
	case errors.Is(err, &problem.Error{Kind: problem.NotFound}):
		return inspectOffline(c, in, "the ledger does not know this certificate")
	default:
		return inspectOffline(c, in, "not asked: "+err.Error())
	}
}

func inspectOffline(c *cobra.Command, in subject, ledger string) error {
	cert := in.certificate
	value := map[string]any{
		"kind": "certificate", "serial": hex.EncodeToString(cert.SerialNumber.Bytes()),
		"subject": cert.Subject.String(), "issuer": cert.Issuer.String(), "names": certificateNames(cert),
		"not_before": cert.NotBefore.UTC(), "not_after": cert.NotAfter.UTC(), "ledger": ledger,
	}
	return newPrinter(c).result(value, func(w *writer) {
		w.line("serial        %x", cert.SerialNumber.Bytes())
		if in.foreign == nil {
			serialText(w, in.serial)
		}
		w.line("subject       %s", cert.Subject)
		w.line("issuer        %s", cert.Issuer)
		w.line("names         %s", strings.Join(certificateNames(cert), ", "))
		w.line("valid         %s – %s", cert.NotBefore.UTC().Format(time.RFC3339), when(cert.NotAfter))
		if ledger != "" {
			w.line("ledger        %s", ledger)
		}
	})
}

func certificateNames(cert *x509.Certificate) []string {
	names := []string{}
	for _, n := range cert.DNSNames {
		names = append(names, "dns:"+n)
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, "ip:"+ip.String())
	}
	for _, u := range cert.URIs {
		names = append(names, "uri:"+u.String())
	}
	for _, e := range cert.EmailAddresses {
		names = append(names, "email:"+e)
	}
	return names
}

// certificateText shows a certificate of the ledger.
func certificateText(w *writer, cert *certmillv1.Certificate) {
	w.line("serial        %s", cert.GetSerial())
	if n, err := serial.Parse(cert.GetSerial()); err == nil {
		serialText(w, n)
	}
	w.line("names         %s", strings.Join(cert.GetNames(), ", "))
	w.line("issuer        %s, profile %s (version %s)", cert.GetIssuer(), cert.GetProfile(), cert.GetProfileVersion())
	w.line("valid         %s – %s", cert.GetNotBefore().AsTime().UTC().Format(time.RFC3339), when(cert.GetNotAfter().AsTime()))
	w.line("requested by  %s", cert.GetCaller())
	if m := cert.GetMetadata(); m.GetOwner()+m.GetService()+m.GetEnvironment() != "" {
		w.line("for           owner %q, service %q, environment %q", m.GetOwner(), m.GetService(), m.GetEnvironment())
	}
	if cert.GetDuplicate() {
		w.line("              an earlier request with this key had made it")
	}
	if r := cert.GetRevocation(); r != nil {
		w.line("REVOKED       %s by %s: %s", when(r.GetRevokedAt().AsTime()), r.GetRevokedBy(), reasonName(r.GetReason()))
	} else {
		w.line("status        not revoked")
	}
}

// serialText shows what a serial says of itself.
func serialText(w *writer, n serial.Number) {
	w.line("              signer epoch %d; its row may leave the ledger after %s", n.Epoch(), n.Bucket().End().Format(time.DateOnly))
}
