package signer

import (
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/tlv"
)

// The extensions of RFC 5280 section 4.2, RFC 9608 (noRevAvail) and the access methods.
var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidCRLDistribution  = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidPolicies         = asn1.ObjectIdentifier{2, 5, 29, 32}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidNoRevAvail       = asn1.ObjectIdentifier{2, 5, 29, 56}
	oidAuthorityInfo    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	oidOCSP             = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}
	oidCAIssuers        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}
)

var (
	tagKeyID = der.Tag(0).ContextSpecific() // AuthorityKeyIdentifier.keyIdentifier
	tagEmail = der.Tag(1).ContextSpecific() // GeneralName.rfc822Name
	tagDNS   = der.Tag(2).ContextSpecific() // GeneralName.dNSName
	tagURI   = der.Tag(6).ContextSpecific() // GeneralName.uniformResourceIdentifier
	tagIP    = der.Tag(7).ContextSpecific() // GeneralName.iPAddress
)

// addExtension adds one Extension, whose content value writes.
func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(der.OCTET_STRING, value)
	})
}

// fixedExtensions returns the extensions that are the same in every certificate of an
// issuer, a profile and a CRL: all but the subject's key identifier and names. The URLs are
// "" where the profile has none.
func fixedExtensions(authorityKeyID []byte, p *profile.Profile, issuersURL, crlURL string) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	addExtension(b, oidKeyUsage, true, func(b *cryptobyte.Builder) { addNamedBits(b, p.KeyUsageBits()) })
	if oids := p.ExtKeyUsageOIDs(); len(oids) > 0 {
		addExtension(b, oidExtKeyUsage, false, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, oid := range oids {
					b.AddASN1ObjectIdentifier(oid)
				}
			})
		})
	}
	// cA is FALSE by DEFAULT, which DER leaves out.
	addExtension(b, oidBasicConstraints, true, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(*cryptobyte.Builder) {})
	})
	addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(tagKeyID, func(b *cryptobyte.Builder) { b.AddBytes(authorityKeyID) })
		})
	})
	addAuthorityInfo(b, p.Revocation.OCSPURL, issuersURL)
	addRevocation(b, p, crlURL)
	addPolicies(b, p)
	for i := range p.ExtraExtensions {
		if err := addExtra(b, &p.ExtraExtensions[i]); err != nil {
			return nil, err
		}
	}
	return b.Bytes()
}

// addNamedBits adds a BIT STRING of named bits, whose trailing zero bits DER leaves out
// (X.690 section 11.2.2). bits ascend.
func addNamedBits(b *cryptobyte.Builder, bits []int) {
	last := bits[len(bits)-1]
	octets := make([]byte, last/8+1)
	for _, n := range bits {
		octets[n/8] |= 0x80 >> (n % 8)
	}
	b.AddASN1(der.BIT_STRING, func(b *cryptobyte.Builder) {
		b.AddUint8(uint8(7 - last%8))
		b.AddBytes(octets)
	})
}

func addAuthorityInfo(b *cryptobyte.Builder, ocsp, issuers string) {
	if ocsp == "" && issuers == "" {
		return
	}
	addExtension(b, oidAuthorityInfo, false, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			addAccess(b, oidOCSP, ocsp)
			addAccess(b, oidCAIssuers, issuers)
		})
	})
}

func addAccess(b *cryptobyte.Builder, method asn1.ObjectIdentifier, url string) {
	if url == "" {
		return
	}
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(method)
		addString(b, tagURI, url)
	})
}

// addRevocation adds the CRL distribution point, or says that there is no revocation
// information to be had (RFC 9608 section 2).
func addRevocation(b *cryptobyte.Builder, p *profile.Profile, crlURL string) {
	if p.Revocation.Mode == profile.RevocationNone {
		addExtension(b, oidNoRevAvail, false, func(b *cryptobyte.Builder) { b.AddASN1NULL() })
	}
	if crlURL == "" {
		return
	}
	explicit := der.Tag(0).ContextSpecific().Constructed()
	addExtension(b, oidCRLDistribution, false, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) { // CRLDistributionPoints
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) { // DistributionPoint
				b.AddASN1(explicit, func(b *cryptobyte.Builder) { // distributionPoint
					b.AddASN1(explicit, func(b *cryptobyte.Builder) { // fullName
						addString(b, tagURI, crlURL)
					})
				})
			})
		})
	})
}

func addPolicies(b *cryptobyte.Builder, p *profile.Profile) {
	if len(p.Policies) == 0 {
		return
	}
	addExtension(b, oidPolicies, false, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, dotted := range p.Policies {
				oid, err := profile.ParseOID(dotted)
				if err != nil {
					b.SetError(err)
					return
				}
				b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) })
			}
		})
	})
}

func addExtra(b *cryptobyte.Builder, e *profile.Extension) error {
	oid, err := profile.ParseOID(e.OID)
	if err != nil {
		return err
	}
	value, err := e.DER()
	if err != nil {
		return err
	}
	addExtension(b, oid, e.Critical, func(b *cryptobyte.Builder) { b.AddBytes(value) })
	return nil
}

func addString(b *cryptobyte.Builder, tag der.Tag, s string) {
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

// names are the subject alternative names of a request (RFC 5280 section 4.2.1.6).
type names struct {
	request *profile.Request
	head    []byte // of the extension, up to its value
	list    int    // octets of all names together
}

var (
	namesHead         = []byte{6, 3, 0x55, 0x1d, 17}
	namesHeadCritical = []byte{6, 3, 0x55, 0x1d, 17, 1, 1, 0xff}
)

// newNames measures them. The extension is critical where the subject is empty.
func newNames(r *profile.Request, critical bool) names {
	n := names{request: r, head: namesHead}
	if critical {
		n.head = namesHeadCritical
	}
	for _, list := range [...][]string{r.DNSNames, r.URIs, r.Emails} {
		for _, name := range list {
			n.list += tlv.Size(len(name))
		}
	}
	for _, ip := range r.IPAddresses {
		n.list += tlv.Size(ip.BitLen() / 8)
	}
	return n
}

// value and content are the octets of the extension's value and of the extension.
func (n *names) value() int   { return tlv.Size(n.list) }
func (n *names) content() int { return len(n.head) + tlv.Size(n.value()) }

// size returns the octets of the whole extension; 0 where there are no names.
func (n *names) size() int {
	if n.list == 0 {
		return 0
	}
	return tlv.Size(n.content())
}

// append appends the extension, if there are names.
func (n *names) append(b []byte) []byte {
	if n.list == 0 {
		return b
	}
	b = append(tlv.AppendHead(b, der.SEQUENCE, n.content()), n.head...)
	b = tlv.AppendHead(b, der.OCTET_STRING, n.value())
	b = tlv.AppendHead(b, der.SEQUENCE, n.list)
	for _, name := range n.request.DNSNames {
		b = append(tlv.AppendHead(b, tagDNS, len(name)), name...)
	}
	for _, ip := range n.request.IPAddresses {
		b = tlv.AppendHead(b, tagIP, ip.BitLen()/8)
		if ip.Is4() {
			v := ip.As4()
			b = append(b, v[:]...)
		} else {
			v := ip.As16()
			b = append(b, v[:]...)
		}
	}
	for _, uri := range n.request.URIs {
		b = append(tlv.AppendHead(b, tagURI, len(uri)), uri...)
	}
	for _, email := range n.request.Emails {
		b = append(tlv.AppendHead(b, tagEmail, len(email)), email...)
	}
	return b
}
