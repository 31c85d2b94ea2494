package signer

import (
	"context"
	"fmt"
	"time"
)

// clockEvery is how often the clock is compared with the database's.
const clockEvery = 5 * time.Second

// watchClock compares the clock with the database's until ctx ends. Where the database
// cannot be asked, what was measured last holds: the gate sees to the rest.
func (s *Signer) watchClock(ctx context.Context) error {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.measureClock(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("the clock could not be compared with the database's", "error", err)
		}
	}
}

// measureClock compares the clocks once.
func (s *Signer) measureClock(ctx context.Context) error {
	before := s.skewed()
	skew, err := s.book.ClockSkew(ctx)
	if err != nil {
		return fmt.Errorf("asking the database for its time: %w", err)
	}
	s.skew.Store(int64(skew))
	switch after := s.skewed(); {
	case before == nil && after != nil:
		s.log.Error("no work is taken until the clock is right", "error", after)
	case before != nil && after == nil:
		s.log.Info("the clock is right again", "skew", skew)
	}
	return nil
}

// skewed says by how much the clock is wrong, where that is too much.
func (s *Signer) skewed() error {
	skew := time.Duration(s.skew.Load())
	if skew.Abs() <= s.cfg.MaxClockSkew {
		return nil
	}
	return fmt.Errorf("this clock is %s off the database's; %s is the most (max_clock_skew)", skew.Round(time.Millisecond), s.cfg.MaxClockSkew)
}
