package gateway

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// issued is a certificate on its way to its caller. The transports take from it what
// they send: a PEM answer never makes the message that a JSON answer needs.
type issued struct {
	requestID string
	serial    serial.Number
	result    *queuev1.SignResult
	leaf      leaf
	issuer    *issuer
	request   *profile.Request
	renewAt   time.Time
}

func (s *service) newIssued(requestID string, r *queuev1.SignResult, i *issuer, request *profile.Request) (*issued, error) {
	n, err := serial.FromBytes(r.Serial)
	if err != nil {
		return nil, fmt.Errorf("reading a signer's result: %w", err)
	}
	l, err := readLeaf(r.Der)
	if err != nil {
		return nil, err
	}
	return &issued{
		requestID: requestID, serial: n, result: r, leaf: l, issuer: s.chainFor(request.Profile, i), request: request,
		renewAt: s.advise(&renewable{
			serial: n, issuer: i, profile: request.Profile, caller: request.Caller.ID, names: l.names, notBefore: l.notBefore, notAfter: l.notAfter,
		}).at,
	}, nil
}

// pem returns the certificate and its chain, leaf first, without the root.
func (i *issued) pem() []byte { return pemChain(i.result.Der, i.issuer) }

// message returns the certificate for gRPC and JSON.
func (i *issued) message() *certmillv1.Certificate {
	r := i.request
	return &certmillv1.Certificate{
		Serial: i.serial.String(), Der: i.result.Der, Chain: i.issuer.chain, Pem: string(i.pem()),
		Issuer: i.issuer.Name, Profile: r.Profile, ProfileVersion: i.result.ProfileVersion, Names: i.leaf.names,
		NotBefore: timestamppb.New(i.leaf.notBefore), NotAfter: timestamppb.New(i.leaf.notAfter),
		Caller: r.Caller.ID, Metadata: metadataMessage(r.Owner, r.Service, r.Environment),
		RequestId: i.requestID, Duplicate: i.result.Duplicate, SpkiSha256: hex.EncodeToString(i.leaf.spki[:]),
		RenewAt: timestamppb.New(i.renewAt),
	}
}

// storedCertificate returns a row of the ledger without its chain.
func (s *service) storedCertificate(c *ledger.Certificate, i *issuer) *certmillv1.Certificate {
	return &certmillv1.Certificate{
		Serial: c.Serial.String(), Der: c.DER, Issuer: i.Name,
		Profile: c.Profile, ProfileVersion: c.ProfileVersion, Names: c.Names,
		NotBefore: timestamppb.New(c.NotBefore), NotAfter: timestamppb.New(c.NotAfter),
		Caller: c.Caller, Metadata: metadataMessage(c.Owner, c.Service, c.Environment),
		SpkiSha256: hex.EncodeToString(c.SPKI[:]),
		RenewAt:    timestamppb.New(s.advise(stored(c, i)).at),
	}
}

func metadataMessage(owner, service, environment string) *certmillv1.Metadata {
	if owner == "" && service == "" && environment == "" {
		return nil
	}
	return &certmillv1.Metadata{Owner: owner, Service: service, Environment: environment}
}

func revocationMessage(r *ledger.Revocation) *certmillv1.Revocation {
	return &certmillv1.Revocation{
		Serial: r.Serial.String(), Reason: certmillv1.RevocationReason(r.Reason),
		RevokedAt: timestamppb.New(r.RevokedAt), RevokedBy: r.RevokedBy,
	}
}

const (
	pemBegin = "-----BEGIN CERTIFICATE-----\n"
	pemEnd   = "-----END CERTIFICATE-----\n"
	pemLine  = 64 // characters; 48 octets
)

// pemOf returns the PEM of one certificate.
func pemOf(der []byte) string { return string(pemChain(der, &issuer{})) }

// pemChain writes the PEM of der (RFC 7468) and the issuer's chain in one allocation;
// encoding/pem takes three times as long.
func pemChain(der []byte, i *issuer) []byte {
	encoded := base64.StdEncoding.EncodedLen(len(der))
	out := make([]byte, 0, len(pemBegin)+encoded+encoded/pemLine+1+len(pemEnd)+len(i.chainPEM))
	out = append(out, pemBegin...)
	for len(der) > 0 {
		n := min(len(der), pemLine/4*3)
		out = base64.StdEncoding.AppendEncode(out, der[:n])
		out = append(out, '\n')
		der = der[n:]
	}
	out = append(out, pemEnd...)
	return append(out, i.chainPEM...)
}
