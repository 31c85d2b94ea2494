package ledger

import (
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// columns are the entries of a batch turned on their side: one array for each
// parameter of the commit statement.
type columns struct {
	key, serial, csr, spki, der         array
	reuseUntil, notBefore, notAfter     array
	issuer, revocation                  array
	profile, profileVersion             array
	name, moreNames                     array
	caller, owner, service, environment array

	// Of names beyond the first, a row each.
	otherName, otherSerial, otherNotAfter array
}

// newColumns returns columns with room for n entries of a usual size.
func newColumns(n int) *columns {
	return &columns{
		key: byteaArray(20 * n), serial: byteaArray(20 * n), csr: byteaArray(36 * n), spki: byteaArray(36 * n), der: byteaArray(768 * n),
		reuseUntil: timeArray(n), notBefore: timeArray(n), notAfter: timeArray(n),
		issuer: newArray(pgtype.Int4OID, 8*n), revocation: newArray(pgtype.Int2OID, 6*n),
		profile: textArray(16 * n), profileVersion: textArray(16 * n),
		name: textArray(80 * n), moreNames: textArray(8 * n),
		caller: textArray(80 * n), owner: textArray(16 * n), service: textArray(16 * n), environment: textArray(16 * n),
		otherName: textArray(0), otherSerial: byteaArray(0), otherNotAfter: timeArray(0),
	}
}

// add takes an entry; short is whether its row may leave out what is said elsewhere in it.
func (c *columns) add(e *Entry, short bool) {
	c.key.octets(e.RequestKey[:])
	c.serial.octets(e.Serial[:])
	c.csr.octets(e.CSR[:])
	// A key never outlives its certificate: an expired one is of no use to a retry.
	reuse := e.ReuseUntil
	if e.NotAfter.Before(reuse) {
		reuse = e.NotAfter
	}
	c.reuseUntil.time(reuse)
	c.notBefore.time(e.NotBefore)
	c.notAfter.time(e.NotAfter)
	c.issuer.int4(e.Issuer)
	c.revocation.int2(int16(e.Revocation))
	spki, caller := e.SPKI[:], e.Caller
	if short {
		if hash, ok := spkiHash(e.DER); ok && hash == e.SPKI {
			spki = nil
		}
		if len(e.Names) > 0 {
			caller = shortCaller(caller, e.Names[0])
		}
	}
	c.spki.octets(spki)
	c.profile.text(e.Profile)
	c.profileVersion.text(e.ProfileVersion)
	c.caller.text(caller)
	c.owner.text(e.Owner)
	c.service.text(e.Service)
	c.environment.text(e.Environment)
	c.der.octets(e.DER)
	c.addNames(e, short)
}

// addNames puts the first name into the certificate's row and each other one, once,
// into a row of its own. A row that may be short has "" for no other names: one NULL
// would cost it eight octets.
func (c *columns) addNames(e *Entry, short bool) {
	var first string
	if len(e.Names) > 0 {
		first = e.Names[0]
	}
	c.name.text(first)
	switch {
	case len(e.Names) > 1:
		c.moreNames.text(strings.Join(e.Names[1:], "\n"))
	case short:
		c.moreNames.text("")
	default:
		c.moreNames.null()
	}
	if len(e.Names) < 2 {
		return
	}
	seen := map[string]bool{first: true}
	for _, n := range e.Names[1:] {
		if !seen[n] {
			seen[n] = true
			c.otherName.text(n)
			c.otherSerial.octets(e.Serial[:])
			c.otherNotAfter.time(e.NotAfter)
		}
	}
}

// args returns the parameters of the commit statement, $1 to $19, and, of one that
// stores other names, to $22, in binary form.
func (c *columns) args(now time.Time) [][]byte {
	args := make([][]byte, 0, 22)
	for _, a := range []*array{
		&c.key, &c.serial, &c.csr, &c.reuseUntil,
		&c.notBefore, &c.notAfter, &c.issuer, &c.revocation, &c.spki,
		&c.profile, &c.profileVersion, &c.name, &c.moreNames,
		&c.caller, &c.owner, &c.service, &c.environment, &c.der,
	} {
		args = append(args, a.encoded())
	}
	args = append(args, appendTime(nil, now))
	if c.otherName.count > 0 {
		args = append(args, c.otherName.encoded(), c.otherSerial.encoded(), c.otherNotAfter.encoded())
	}
	return args
}

// certificateColumns is what scanCertificate reads.
const certificateColumns = `serial, not_before, not_after, issuer, revocation, spki,
	profile, profile_version, name, more_names, caller, owner, service, environment, der`

// scanCertificate reads a row of certificateColumns.
func scanCertificate(rows pgx.Rows) (Certificate, error) {
	var c Certificate
	var number, spki []byte
	var revocation int16
	var name string
	var more *string
	var ok bool
	err := rows.Scan(&number, &c.NotBefore, &c.NotAfter, &c.Issuer, &revocation, &spki,
		&c.Profile, &c.ProfileVersion, &name, &more, &c.Caller, &c.Owner, &c.Service, &c.Environment, &c.DER)
	if err != nil {
		return c, err
	}
	if c.Serial, err = serial.FromBytes(number); err != nil {
		return c, err
	}
	if len(spki) > 0 {
		copy(c.SPKI[:], spki)
	} else if c.SPKI, ok = spkiHash(c.DER); !ok {
		return c, problem.New(problem.Internal, "the row of %s has neither the hash of a key nor a certificate", c.Serial)
	}
	c.Caller = fullCaller(c.Caller, name)
	c.Revocation = uint8(revocation)
	c.NotBefore, c.NotAfter = c.NotBefore.UTC(), c.NotAfter.UTC()
	if name != "" {
		c.Names = []string{name}
	}
	if more != nil && *more != "" {
		c.Names = append(c.Names, strings.Split(*more, "\n")...)
	}
	return c, nil
}

// octets returns serials as a parameter of type bytea[].
func octets(serials []serial.Number) [][]byte {
	out := make([][]byte, len(serials))
	for i := range serials {
		out[i] = serials[i][:]
	}
	return out
}
