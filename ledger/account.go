package ledger

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/serial"
)

// Account compares the signatures of an epoch with what became of them.
type Account struct {
	Epoch
	// Rows is how many certificates of the epoch the ledger holds now, those of issuers
	// and OCSP signers included.
	Rows int64
	// RowsLeft says that rows of the epoch may have expired and left the ledger: then
	// the account rests on what the signer has counted.
	RowsLeft bool
	// Strays are the signatures recorded as having no row, and that have none today.
	Strays []Stray
}

// Accounted returns how many of the epoch's signatures are accounted for: they have a
// row, are recorded as strays, or are those of CRLs.
func (a *Account) Accounted() int64 {
	if a.RowsLeft {
		return a.Committed + a.Discarded + a.CRLs
	}
	return a.Rows + int64(len(a.Strays)) + a.CRLs
}

// AccountState is how an epoch's account stands.
type AccountState string

// The states of an account.
const (
	// AccountClosed: the epoch has ended and each of its signatures is accounted for.
	AccountClosed AccountState = "closed"
	// AccountRunning: the signer is at work and has reported lately.
	AccountRunning AccountState = "running"
	// AccountDied: the signer has not reported for long and has not ended its epoch.
	// What it signed after its last report is not known until a signer with its
	// state_dir starts.
	AccountDied AccountState = "died"
	// AccountBroken: the epoch has ended and the numbers do not agree.
	AccountBroken AccountState = "broken"
)

// State judges the account; an epoch that has not ended and has not reported for
// silence counts as died.
func (a *Account) State(now time.Time, silence time.Duration) AccountState {
	last := a.ReportedAt
	if last.Before(a.Started) {
		last = a.Started
	}
	switch {
	case a.Final && a.Signatures == a.Accounted():
		return AccountClosed
	case a.Final:
		return AccountBroken
	case now.Sub(last) < silence:
		return AccountRunning
	default:
		return AccountDied
	}
}

// accountPage is how many serials are read at once.
const accountPage = 50_000

// Accounts returns the account of every epoch, the newest first. It reads the serial of
// every certificate once, in the order of the key: about a second for a million.
func (l *Ledger) Accounts(ctx context.Context) ([]Account, error) {
	// The epochs first: what is signed meanwhile must not look like a row too many.
	epochs, err := l.Epochs(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the epochs: %w", err)
	}
	rows, err := l.rowsByEpoch(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.ceremonies(ctx, rows); err != nil {
		return nil, err
	}
	strays, err := l.strays(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the strays: %w", err)
	}
	now := l.now()
	accounts := make([]Account, len(epochs))
	for i, e := range epochs {
		// A row stays for Grace after its certificate has expired, so that none of an
		// epoch younger than Grace can have left.
		accounts[i] = Account{Epoch: e, Rows: rows[e.ID], RowsLeft: now.Sub(e.Started) > Grace && e.Committed > rows[e.ID], Strays: strays[e.ID]}
	}
	return accounts, nil
}

// rowsByEpoch counts the certificates of each epoch.
func (l *Ledger) rowsByEpoch(ctx context.Context) (map[uint32]int64, error) {
	count := map[uint32]int64{}
	var after serial.Number
	for {
		var page []serial.Number
		err := l.query(ctx, func() { page = page[:0] }, func(rows pgx.Rows) error {
			var raw []byte
			if err := rows.Scan(&raw); err != nil {
				return err
			}
			n, err := serial.FromBytes(raw)
			page = append(page, n)
			return err
		}, `SELECT serial FROM certificates WHERE serial > $1 ORDER BY serial LIMIT $2`, after[:], accountPage)
		if err != nil {
			return nil, fmt.Errorf("counting certificates: %w", err)
		}
		for _, n := range page {
			count[n.Epoch()]++
		}
		if len(page) < accountPage {
			return count, nil
		}
		after = page[len(page)-1]
	}
}

// ceremonies adds the certificates of issuers and OCSP signers, which have tables of
// their own. Those that were not made here have no epoch.
func (l *Ledger) ceremonies(ctx context.Context, count map[uint32]int64) error {
	issuers, err := l.Issuers(ctx)
	if err != nil {
		return fmt.Errorf("reading the issuers: %w", err)
	}
	signers, err := l.OCSPSigners(ctx)
	if err != nil {
		return fmt.Errorf("reading the OCSP signers: %w", err)
	}
	seen := map[serial.Number]bool{}
	add := func(der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if n, err := serial.FromBig(cert.SerialNumber); err == nil && !seen[n] {
			seen[n] = true
			count[n.Epoch()]++
		}
	}
	for _, i := range issuers {
		add(i.DER)
		for _, der := range i.Chain { // a root is in the chains of its issuers alone
			add(der)
		}
	}
	for _, s := range signers {
		add(s.DER)
	}
	return nil
}

// strays returns the recorded strays that have no row, by epoch.
func (l *Ledger) strays(ctx context.Context) (map[uint32][]Stray, error) {
	var out map[uint32][]Stray
	err := l.query(ctx, func() { out = map[uint32][]Stray{} }, func(rows pgx.Rows) error {
		var s Stray
		var raw []byte
		if err := rows.Scan(&raw, &s.Reason, &s.Recorded); err != nil {
			return err
		}
		n, err := serial.FromBytes(raw)
		s.Serial, s.Recorded = n, s.Recorded.UTC()
		out[n.Epoch()] = append(out[n.Epoch()], s)
		return err
	}, `SELECT serial, reason, recorded_at FROM signature_strays s
		WHERE NOT EXISTS (SELECT 1 FROM certificates c WHERE c.serial = s.serial) ORDER BY serial`)
	return out, err
}
