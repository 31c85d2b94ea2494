package ledger

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// MaxBatch is the most entries that CommitBatch takes: larger statements gain
// nothing and hold their locks longer.
const MaxBatch = 256

// maxNames bounds the names of one certificate, so that a batch stays one statement
// of reasonable size.
const maxNames = 10_000

// CommitBatch stores up to MaxBatch entries and returns their fates in the same
// order. An entry whose key is free, or past its reuse time, is stored. One whose
// key has made a certificate for the same CSR is a Duplicate with that certificate;
// for another CSR, or where an order has failed, it is a Conflict on the field
// request_id. A bad entry fails alone.
//
// It may be repeated with the same entries after any failure: an entry that finds
// its own serial under its key is no Duplicate. When it returns Unavailable the
// entry may or may not be stored.
func (l *Ledger) CommitBatch(ctx context.Context, entries []Entry) []Result {
	results := make([]Result, len(entries))
	if len(entries) > MaxBatch {
		for i := range results {
			results[i].Err = problem.New(problem.Internal, "a batch of %d entries; %d is the most", len(entries), MaxBatch)
		}
		return results
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b := &batch{ledger: l, entries: entries, results: results}
	var pending []int
	for i := range entries {
		if err := checkEntry(&entries[i], l.now()); err != nil {
			results[i].Err = err
		} else {
			pending = append(pending, i)
		}
	}
	for len(pending) > 0 {
		var round []int
		round, pending = distinctKeys(entries, pending)
		b.commit(ctx, round)
	}
	return results
}

// checkEntry refuses what could not be found again or could not be stored.
func checkEntry(e *Entry, now time.Time) error {
	switch {
	case e.RequestKey == RequestKey{}:
		return problem.Rejected("request_id", "required", "an entry needs a request key")
	case e.ReuseUntil.After(now.Add(MaxReuse + time.Minute)): // a minute for clocks that differ
		return problem.Rejected("reuse", "max_reuse", "a request key stands for at most %s", MaxReuse)
	case len(e.Names) > maxNames:
		return problem.Rejected("names", "max_names", "%d names; %d is the most", len(e.Names), maxNames)
	case kindAlone(e.Caller):
		return problem.Rejected("caller", "identity", "the caller %q has no identity", e.Caller)
	case e.Serial.Epoch() == 0:
		return problem.New(problem.Internal, "an entry without a serial")
	case e.Issuer == 0 || len(e.DER) == 0:
		return problem.New(problem.Internal, "an entry without issuer or certificate")
	}
	for _, n := range e.Names {
		if strings.ContainsAny(n, "\n\x00") {
			return problem.Rejected("names", "characters", "a name holds a line break or a NUL")
		}
	}
	return nil
}

// distinctKeys takes from pending the first entry of each key, sorted by key so that
// two batches lock keys in one order, and leaves the others: they are decided when
// the first has been.
func distinctKeys(entries []Entry, pending []int) (round, rest []int) {
	order := func(i, j int) int { return bytes.Compare(entries[i].RequestKey[:], entries[j].RequestKey[:]) }
	slices.SortStableFunc(pending, order)
	for n, i := range pending {
		if n > 0 && entries[i].RequestKey == entries[pending[n-1]].RequestKey {
			rest = append(rest, i)
		} else {
			round = append(round, i)
		}
	}
	return round, rest
}

// batch is one CommitBatch at work.
type batch struct {
	ledger  *Ledger
	entries []Entry
	results []Result
}

// commit decides the entries of round, whose keys are distinct.
func (b *batch) commit(ctx context.Context, round []int) {
	began := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		left, err := b.try(ctx, round)
		if err == nil && len(left) == 0 {
			return
		}
		if err != nil {
			c := causeOf(ctx, err)
			switch {
			case isProblem(err):
				b.fail(round, err)
				return
			case c == causeData && len(round) > 1:
				// Nothing of it was stored. Halve it until the bad row is alone.
				half := len(round) / 2
				b.commit(ctx, round[:half])
				b.commit(ctx, round[half:])
				return
			case !c.moreTries(began):
				b.fail(round, failed(c, err))
				return
			}
			b.ledger.repeating(ctx, c, err)
		} else {
			// Their keys were taken, and free again when they were looked up.
			round = left
			err = errKeyMoved
		}
		if !sleep(ctx, pause) {
			b.fail(round, failed(causeEnded, err))
			return
		}
	}
}

var errKeyMoved = errors.New("request keys changed hands between two statements")

func (b *batch) fail(round []int, err error) {
	for _, i := range round {
		b.results[i] = Result{Err: err}
	}
}

// try runs the statement once and settles what it says. It returns the entries that
// are still undecided.
func (b *batch) try(ctx context.Context, round []int) (left []int, err error) {
	won, err := b.insert(ctx, round)
	if err != nil {
		return nil, err
	}
	var lost []int
	for _, i := range round {
		if _, ok := won[b.entries[i].Serial]; ok {
			b.results[i] = Result{Outcome: Outcome{Certificate: b.entries[i].Certificate}}
		} else {
			lost = append(lost, i)
		}
	}
	if len(lost) == 0 {
		return nil, nil
	}
	return b.settle(ctx, lost)
}

// settle decides the entries whose key was taken by what stands under it.
func (b *batch) settle(ctx context.Context, lost []int) (left []int, err error) {
	keys := make([]RequestKey, len(lost))
	own := make(map[serial.Number]bool, len(lost))
	for n, i := range lost {
		keys[n] = b.entries[i].RequestKey
		own[b.entries[i].Serial] = true
	}
	now := b.ledger.now()
	found, err := b.ledger.lookup(ctx, keys, func(c claim) bool { return c.expires.After(now) || own[c.serial] })
	if err != nil {
		return nil, err
	}
	for _, i := range lost {
		e := &b.entries[i]
		f, ok := found[e.RequestKey]
		switch {
		case !ok:
			left = append(left, i)
		case f.Certificate.Serial == e.Serial:
			b.results[i] = Result{Outcome: Outcome{Certificate: e.Certificate}}
		default:
			if err := f.Refusal(e.CSR); err != nil {
				b.results[i] = Result{Err: err}
			} else {
				b.results[i] = Result{Outcome: Outcome{Certificate: f.Certificate, Duplicate: true}}
			}
		}
	}
	return left, nil
}

func errOtherCSR() error {
	return &problem.Error{Kind: problem.Conflict, Field: "request_id", Rule: "same_csr",
		Detail: "an earlier request used the same request id with another CSR; use a new request id"}
}

// insert runs the commit statement for round and returns the serials it stored.
func (b *batch) insert(ctx context.Context, round []int) (map[serial.Number]struct{}, error) {
	l := b.ledger
	c := newColumns(len(round))
	for _, i := range round {
		c.add(&b.entries[i], l.short)
	}
	conn, err := l.write.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	// Prepared once on each connection. The parameters are in PostgreSQL's form already,
	// so this goes below pgx's types.
	statement := commitStatements[l.dialect][c.otherName.count > 0]
	prepared, err := conn.Conn().Prepare(ctx, statement.name, statement.sql)
	if err != nil {
		return nil, err
	}
	result := conn.Conn().PgConn().ExecStatement(ctx, prepared, c.args(l.now()), inBinary, inBinary).Read()
	if result.Err != nil {
		return nil, result.Err
	}
	won := make(map[serial.Number]struct{}, len(round))
	for _, row := range result.Rows {
		won[serial.Number(row[0])] = struct{}{}
	}
	return won, nil
}

// inBinary is the format of all parameters and results.
var inBinary = []int16{pgx.BinaryFormatCode}
