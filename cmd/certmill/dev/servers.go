package dev

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/config"
)

const (
	database   = "certmill"
	tokenLabel = "certmill"
	// walAhead is one to three minutes of PostgreSQL's log on a small machine.
	walAhead = 512 << 20
)

// servers are the parts that are not ours.
type servers struct {
	mu       sync.Mutex // guards postgres and redis, which are replaced when they die
	postgres *local.PostgreSQL
	redis    *local.Redis

	nats  *local.NATS
	hsm   *local.SoftHSM
	token local.SoftHSMToken

	watch     sync.WaitGroup
	stopWatch context.CancelFunc
}

// startServers starts them and stays with those that are processes: one that dies
// is started again on the same data and port.
func (d *dev) startServers(ctx context.Context) (err error) {
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stopWatch = stop
	written := []string{d.dir.Path("log")}
	if d.LedgerURL == "" {
		if err := d.startPostgres(ctx); err != nil {
			return err
		}
		if err := d.postgres.CreateDatabase(ctx, database); err != nil {
			return err
		}
		tables, err := d.postgres.Tables(ctx, database)
		if err != nil {
			return err
		}
		written = append(written, tables)
		d.watch.Go(func() {
			d.restart(watch, "PostgreSQL", func() *local.Process { return d.postgres.Process() }, d.startPostgres)
		})
	}
	d.watch.Go(func() { local.Writeback(watch, written...) })
	if err := d.startRedis(ctx); err != nil {
		return err
	}
	d.watch.Go(func() {
		d.restart(watch, "Redis", func() *local.Process { return d.redis.Process() }, d.startRedis)
	})
	// The streams are in memory: orders and events are made again from the ledger, and
	// callers who wait ask again.
	if d.nats, err = local.StartNATS(d.dir, local.NATSOptions{Forget: true}); err != nil {
		return err
	}
	if d.hsm, err = local.OpenSoftHSM(d.dir); err != nil {
		return err
	}
	d.token, err = d.hsm.Token(ctx, tokenLabel)
	return err
}

func (d *dev) startPostgres(ctx context.Context) error {
	p, err := local.StartPostgreSQL(ctx, d.dir, local.PostgreSQLOptions{WALAhead: walAhead})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.postgres = p
	return nil
}

func (d *dev) startRedis(ctx context.Context) error {
	r, err := local.StartRedis(ctx, d.dir, local.RedisOptions{})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.redis = r
	return nil
}

// restart waits for a server's death and starts it again, until ctx ends.
func (d *dev) restart(ctx context.Context, name string, process func() *local.Process, start func(context.Context) error) {
	for {
		d.mu.Lock()
		p := process()
		d.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
		}
		d.say("%s died; starting it again", name)
		for try := 0; ; try++ {
			err := start(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			d.say("%s does not start: %v", name, err)
			if !pause(ctx, min(time.Second<<min(try, 4), 10*time.Second)) {
				return
			}
		}
	}
}

// stopServers stops what was started, the ledger last.
func (d *dev) stopServers() error {
	if d.stopWatch == nil {
		return nil
	}
	d.stopWatch()
	d.watch.Wait()
	var errs []error
	if d.nats != nil {
		d.nats.Stop()
	}
	if d.redis != nil {
		errs = append(errs, d.redis.Stop())
	}
	if d.postgres != nil {
		errs = append(errs, d.postgres.Stop())
	}
	return errors.Join(errs...)
}

// ledger returns how the roles reach the database.
func (d *dev) ledger() config.Ledger {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.LedgerURL != "" {
		return config.Ledger{URL: d.LedgerURL, PasswordFile: d.LedgerPasswordFile}
	}
	return config.Ledger{URL: d.postgres.URL(database), PasswordFile: d.postgres.PasswordFile()}
}

func (d *dev) describeServers() string {
	var b strings.Builder
	if d.LedgerURL == "" {
		fmt.Fprintf(&b, "  ledger        PGPASSWORD=$(cat %s) psql '%s'\n", d.path("postgresql.password"), d.ledger().URL)
	} else {
		fmt.Fprintf(&b, "  ledger        %s\n", d.LedgerURL)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(&b, "  Redis         %s\n  NATS          %s\n  HSM           %s, token %q\n", d.redis.Addr(), d.nats.URL(), d.hsm.Module, tokenLabel)
	return b.String()
}

// pause waits; it returns false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
