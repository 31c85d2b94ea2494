package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/serial"
)

// partitioned are the tables with a partition for each bucket of serials.
var partitioned = []string{"certificates", "certificate_names"}

// ahead is how long issuance goes on in its proper partitions when nobody maintains
// the ledger. After that the rows go to the default partition and are moved later.
const ahead = 7 * 24 * time.Hour

// horizons are how far in the future certificates of each class of serial expire.
// Longer-lived ones wait in the default partition until their year comes near.
var horizons = [3]time.Duration{serial.DayMax + ahead, serial.MonthMax + ahead, 10 * 366 * 24 * time.Hour}

// maintainPartitions makes what is missing and drops what is past, table by table.
func (l *Ledger) maintainPartitions(ctx context.Context, m *Maintenance) error {
	var errs []error
	for _, table := range partitioned {
		have, err := l.partitions(ctx, table)
		if err != nil {
			errs = append(errs, fmt.Errorf("listing the partitions of %s: %w", table, err))
			continue
		}
		var missing []serial.Bucket
		for class, horizon := range horizons {
			r := serial.Ranges(l.now(), l.now().Add(horizon))[class]
			for b := r[0]; b <= r[1]; b++ {
				if !have[b] {
					missing = append(missing, b)
				}
			}
		}
		if err := l.createPartitions(ctx, m, table, missing); err != nil {
			errs = append(errs, fmt.Errorf("making partitions of %s: %w", table, err))
		}
		for b := range have {
			if b.End().Add(Grace).After(l.now()) {
				continue
			}
			if err := l.dropPartition(ctx, m, table, b); err != nil {
				errs = append(errs, fmt.Errorf("dropping %s: %w", partitionName(table, b), err))
			}
		}
	}
	return errors.Join(errs...)
}

// partitionName puts the bucket in hexadecimal after the table's name, as it begins
// the serials: certificates_1423.
func partitionName(table string, b serial.Bucket) string {
	return fmt.Sprintf("%s_%04x", table, uint16(b))
}

// partitions returns the buckets for which the table has partitions.
func (l *Ledger) partitions(ctx context.Context, table string) (map[serial.Bucket]bool, error) {
	have := map[serial.Bucket]bool{}
	err := l.query(ctx, func() { clear(have) }, func(rows pgx.Rows) error {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		if b, err := strconv.ParseUint(strings.TrimPrefix(name, table+"_"), 16, 16); err == nil {
			have[serial.Bucket(b)] = true
		}
		return nil
	}, `SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::text::regclass`, table)
	return have, err
}

// createPartitions makes the partitions of the buckets. Where the default partition
// has rows, each is made and filled by itself: that takes time, and what is done
// stays done.
func (l *Ledger) createPartitions(ctx context.Context, m *Maintenance, table string, buckets []serial.Bucket) error {
	if len(buckets) == 0 {
		return nil
	}
	var stray bool
	err := l.query(ctx, func() {}, func(rows pgx.Rows) error { return rows.Scan(&stray) }, `SELECT EXISTS (SELECT 1 FROM `+table+`_rest)`)
	if err != nil {
		return err
	}
	step := len(buckets)
	if stray {
		step = 1
	}
	for part := range slices.Chunk(buckets, step) {
		if err := l.attachPartitions(ctx, table, part); err != nil {
			return err
		}
		for _, b := range part {
			m.Created = append(m.Created, partitionName(table, b))
		}
	}
	return nil
}

// attachPartitions makes partitions as tables of their own and attaches them: that
// locks the default partition and leaves the others to their work. Rows that the
// default partition has for them move over first.
func (l *Ledger) attachPartitions(ctx context.Context, table string, buckets []serial.Bucket) error {
	rest := table + "_rest"
	steps := []string{`SET LOCAL statement_timeout = 0`, `LOCK TABLE ` + rest + ` IN ACCESS EXCLUSIVE MODE`}
	for _, b := range buckets {
		name := partitionName(table, b)
		from, to := b.First(), (b + 1).First()
		steps = append(steps,
			fmt.Sprintf(`CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES)`, name, table),
			fmt.Sprintf(`COMMENT ON TABLE %s IS 'rows of certificates that expire before %s'`, name, b.End().Format(time.DateOnly)),
			fmt.Sprintf(`WITH moved AS (DELETE FROM %s WHERE serial >= '\x%s' AND serial < '\x%s' RETURNING *)
				INSERT INTO %s SELECT * FROM moved`, rest, from, to, name),
			fmt.Sprintf(`ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM ('\x%s') TO ('\x%s')`, table, name, from, to))
	}
	return l.ddl(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, strings.Join(steps, ";\n"))
		return err
	})
}

func (l *Ledger) dropPartition(ctx context.Context, m *Maintenance, table string, b serial.Bucket) error {
	name := partitionName(table, b)
	err := l.ddl(ctx, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DROP TABLE `+name)
		return err
	})
	if err == nil {
		m.Dropped = append(m.Dropped, name)
	}
	return err
}

// ddl runs a change of tables that gives up rather than make commits wait in line
// behind it.
func (l *Ledger) ddl(ctx context.Context, fn func(context.Context, pgx.Tx) error) error {
	err := pgx.BeginTxFunc(ctx, l.write, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '1s'`); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
	if err != nil {
		return failed(causeOf(ctx, err), err)
	}
	return nil
}
