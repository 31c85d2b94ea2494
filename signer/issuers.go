package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
)

// refresh makes the lines those of the ledger's active issuers: new generations are
// begun before the old ones are ended. A drained signer has none.
func (s *Signer) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if drained, err := s.followDrain(ctx); drained || err != nil {
		return err
	}
	issuers, err := s.book.Issuers(ctx)
	if err != nil {
		return fmt.Errorf("reading the issuers: %w", err)
	}
	trouble := map[string]error{}
	for _, name := range s.cfg.Issuers {
		if !slices.ContainsFunc(issuers, func(i ledger.Issuer) bool { return i.Name == name && active(i) }) {
			trouble[name] = errors.New("the ledger has no active generation of it")
		}
	}
	keep := map[int32]bool{}
	for _, i := range issuers {
		if !active(i) || !s.wanted(i.Name) {
			continue
		}
		keep[i.ID] = true
		// An issuer whose key is elsewhere is no trouble, unless it was asked for or is the
		// next generation of one that is served here.
		if err := s.ensureLine(ctx, i); err != nil && (len(s.cfg.Issuers) > 0 || !errors.Is(err, errNoSeat) || s.serves(i.Name)) {
			trouble[i.Name] = err
		}
	}
	s.mu.Lock()
	before := s.trouble
	s.trouble = trouble
	s.mu.Unlock()
	for name, err := range trouble {
		if old := before[name]; old == nil || old.Error() != err.Error() {
			s.log.Warn("an issuer is not served", "issuer", name, "error", err)
		}
	}
	s.retire(keep, trouble)
	return nil
}

// mend makes the queue again where pulls are refused: a broker that keeps it in memory
// has forgotten it after a restart, and people delete the wrong thing.
func (s *Signer) mend(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, l := range s.allLines() {
		if !l.refused.Swap(false) {
			continue
		}
		err := queue.EnsureStreams(ctx, s.conn.JetStream, s.conn.Settings)
		if err == nil {
			err = queue.EnsureConsumers(ctx, s.conn.JetStream, s.conn.Settings, l.issuer.Name)
		}
		if err != nil {
			l.refused.Store(true)
			l.log.Warn("the queue cannot be made again yet", "error", err)
		}
	}
}

func active(i ledger.Issuer) bool { return i.State == ledger.IssuerActive }

// serves reports whether a generation of the issuer is served.
func (s *Signer) serves(name string) bool {
	return slices.ContainsFunc(s.allLines(), func(l *line) bool { return l.issuer.Name == name })
}

func (s *Signer) wanted(name string) bool {
	return len(s.cfg.Issuers) == 0 || slices.Contains(s.cfg.Issuers, name)
}

// ensureLine begins the issuer's line, or gives it the tokens that have come since.
func (s *Signer) ensureLine(ctx context.Context, issuer ledger.Issuer) error {
	s.mu.Lock()
	l := s.lines[issuer.ID]
	s.mu.Unlock()
	if l != nil {
		if len(l.allSeats()) == len(s.openTokens()) {
			return nil
		}
		cert, err := x509.ParseCertificate(issuer.DER)
		if err != nil {
			return fmt.Errorf("parsing the certificate of issuer %s: %w", issuer.Name, err)
		}
		return l.findSeats(ctx, cert)
	}
	l, err := s.newLine(ctx, issuer)
	if err != nil {
		return err
	}
	if err := l.open(ctx); err != nil {
		l.reportFinal(ctx)
		return err
	}
	// The line ends by stop, not with the refresh.
	lineCtx, stop := context.WithCancel(s.work)
	l.stop = stop
	s.mu.Lock()
	s.lines[issuer.ID] = l
	s.mu.Unlock()
	go l.run(lineCtx)
	return nil
}

// retire ends the lines of generations that are not active any more. While a name is
// in trouble its old generation goes on.
func (s *Signer) retire(keep map[int32]bool, trouble map[string]error) {
	for _, l := range s.allLines() {
		if keep[l.issuer.ID] || trouble[l.issuer.Name] != nil {
			continue
		}
		l.log.Info("the issuer's generation is not active any more")
		s.endLine(l)
	}
}

// endLine stops a line, waits for its requests and reports its epochs as final.
func (s *Signer) endLine(l *line) {
	l.stop()
	<-l.done
	l.work.Wait()
	s.mu.Lock()
	delete(s.lines, l.issuer.ID)
	s.mu.Unlock()
	s.within(s.work, l.reportFinal)
}

// stopLines stops all pulls at once, then waits for the requests. After
// ShutdownTimeout it ends their context, which ends them too.
func (s *Signer) stopLines(cancelWork context.CancelFunc) {
	lines := s.allLines()
	for _, l := range lines {
		l.stop()
	}
	limit := time.AfterFunc(s.cfg.ShutdownTimeout, func() {
		s.log.Warn("shutdown takes too long; requests are given up", "in_flight", s.inFlight.Load())
		cancelWork()
	})
	defer limit.Stop()
	var wait sync.WaitGroup
	for _, l := range lines {
		wait.Go(func() {
			<-l.done
			l.work.Wait()
		})
	}
	wait.Wait()
}

// reportEpochs writes the numbers of signatures made at intervals, until ctx ends.
func (s *Signer) reportEpochs(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.EpochReportInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			for _, l := range s.allLines() {
				l.report(ctx)
			}
		}
	}
}

// reportFinal reports the epochs of all lines as final.
func (s *Signer) reportFinal(ctx context.Context) {
	for _, l := range s.allLines() {
		l.reportFinal(ctx)
	}
}

// reportFinal settles what is loose and ends the epochs. The line must be at rest.
func (l *line) reportFinal(ctx context.Context) { l.endSeats(ctx, l.allSeats()...) }

// endSeats settles what is loose and ends the epochs of seats that nobody signs in.
func (l *line) endSeats(ctx context.Context, seats ...*seat) {
	if err := l.s.settleLoose(ctx); err != nil {
		l.log.Warn("signatures without a row could not be written down", "error", err)
	}
	l.s.account.settling.Lock()
	defer l.s.account.settling.Unlock()
	for _, seat := range seats {
		l.s.account.drop(seat)
		if err := seat.end(ctx, l.s.book); err != nil {
			l.log.Warn("the account of an epoch stays open", "epoch", seat.epoch, "error", err)
		}
	}
}

func (l *line) report(ctx context.Context) {
	failpoint.Hit(failpoint.SignerReporting)
	for _, seat := range l.allSeats() {
		if err := seat.report(ctx, l.s.book); err != nil {
			l.log.Warn("an epoch's signatures could not be reported", "epoch", seat.epoch, "error", err)
		}
	}
}
