package ledger

import (
	"context"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// ClockSkew returns our clock less the database's, as exactly as half the time that the
// question takes.
func (l *Ledger) ClockSkew(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var theirs time.Time
	asked := l.now()
	if err := l.read.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return 0, problem.Down("ledger", time.Second, err)
	}
	answered := l.now()
	return asked.Add(answered.Sub(asked) / 2).Sub(theirs), nil
}
