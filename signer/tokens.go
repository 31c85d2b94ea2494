package signer

import (
	"context"
	"fmt"
	"slices"

	"github.com/certmill/certmill/signer/hsm"
)

// SetTokens has the signer work with these tokens from the next refresh of its issuers
// on, without a pause: new ones are opened and take their part of the work, then those
// that are not listed any more finish what they have and are closed. A token that is
// listed before and after goes on as it is, with the settings it was opened with. The
// last open token stays until another one is open.
func (s *Signer) SetTokens(tokens []hsm.Config) error {
	c := s.cfg
	c.Tokens = tokens
	if err := c.Validate(); err != nil {
		return fmt.Errorf("signer: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wantedTokens = slices.Clone(tokens)
	return nil
}

// sameToken reports whether two configurations name the same token.
func sameToken(a, b hsm.Config) bool {
	return a.Module == b.Module && a.TokenLabel == b.TokenLabel && a.TokenSerial == b.TokenSerial && a.URI == b.URI
}

func namesToken(list []hsm.Config, c hsm.Config) bool {
	return slices.ContainsFunc(list, func(o hsm.Config) bool { return sameToken(o, c) })
}

// missingTokens returns what is to be opened: those of retry that are still wanted, and
// those wanted since SetTokens was called last.
func (s *Signer) missingTokens(retry []hsm.Config) []hsm.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wantedTokens == nil {
		return retry
	}
	want := s.wantedTokens
	s.openings.Keep(want)
	retry = slices.DeleteFunc(slices.Clone(retry), func(c hsm.Config) bool { return !namesToken(want, c) })
	for _, c := range want {
		open := false
		for _, o := range s.configs {
			if sameToken(o, c) {
				if open = true; o != c {
					s.log.Warn("a token's settings have changed; the open token keeps the old ones until the signer is started again", "token", o.TokenLabel+o.URI)
				}
			}
		}
		if !open && !namesToken(retry, c) {
			retry = append(retry, c)
		}
	}
	s.leaving = s.leaving[:0]
	for t, c := range s.configs {
		if !namesToken(want, c) {
			s.leaving = append(s.leaving, t)
		}
	}
	s.wantedTokens = nil
	return retry
}

// removeTokens takes out what has left the configuration. It returns when nothing works
// with it any more.
func (s *Signer) removeTokens(ctx context.Context) {
	s.mu.Lock()
	leaving := s.leaving
	s.leaving = nil
	s.mu.Unlock()
	for _, t := range leaving {
		if len(s.openTokens()) == 1 {
			s.log.Warn("the last open token stays until another one is open", "token", t.Serial())
			s.mu.Lock()
			s.leaving = append(s.leaving, t)
			s.mu.Unlock()
			continue
		}
		s.removeToken(ctx, t)
	}
}

func (s *Signer) removeToken(ctx context.Context, t Token) {
	s.log.Info("a token is taken out", "token", t.Serial())
	// From here on nobody takes a seat in it.
	s.mu.Lock()
	s.tokens = slices.DeleteFunc(slices.Clone(s.tokens), func(o Token) bool { return o == t })
	delete(s.configs, t)
	s.mu.Unlock()
	for _, l := range s.allLines() {
		switch left, seat := l.otherSeats(t); {
		case seat == nil:
		case left == 0:
			s.endLine(l) // its key is elsewhere; what it holds still signs here
		default:
			l.giveUp(seat)
			s.within(s.work, func(ctx context.Context) { l.endSeats(ctx, seat) })
		}
	}
	s.within(context.WithoutCancel(ctx), func(ctx context.Context) {
		if err := t.Close(ctx); err != nil {
			s.log.Warn("a token could not be closed", "token", t.Serial(), "error", err)
		}
	})
	s.log.Info("the token has been taken out", "token", t.Serial())
}

// otherSeats returns the line's seat in a token, nil where it has none, and how many
// seats it has elsewhere.
func (l *line) otherSeats(t Token) (others int, own *seat) {
	for _, s := range l.allSeats() {
		if s.token == t {
			own = s
		} else {
			others++
		}
	}
	return others, own
}

// giveUp takes a seat from the line and waits for those who hold it.
func (l *line) giveUp(s *seat) {
	l.seatsMu.Lock()
	l.seats = slices.DeleteFunc(slices.Clone(l.seats), func(o *seat) bool { return o == s })
	l.seatsMu.Unlock()
	s.held.Wait()
}
