package ledger

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// TableStorage is what a table takes, all its partitions together.
type TableStorage struct {
	Table string
	// Rows is the database's estimate.
	Rows int64
	// Bytes is the rows' own, without the indexes.
	Bytes   int64
	Indexes []IndexStorage
}

// IndexStorage is what an index takes, on all partitions together.
type IndexStorage struct {
	Index string
	Bytes int64
}

// Total is the table with its indexes, in bytes.
func (t TableStorage) Total() int64 {
	total := t.Bytes
	for _, i := range t.Indexes {
		total += i.Bytes
	}
	return total
}

// Storage returns what each table takes that holds anything, the largest first. On
// CockroachDB, which spreads and compresses in its own way, it returns none.
func (l *Ledger) Storage(ctx context.Context) ([]TableStorage, error) {
	if l.dialect != postgres {
		return nil, nil
	}
	var tables []TableStorage
	err := l.query(ctx, func() { tables = nil }, func(rows pgx.Rows) error {
		var t TableStorage
		err := rows.Scan(&t.Table, &t.Rows, &t.Bytes)
		tables = append(tables, t)
		return err
	}, `SELECT coalesce(pg_partition_root(relid), relid)::regclass::text, sum(n_live_tup)::int8, sum(pg_table_size(relid))::int8 AS bytes
		FROM pg_stat_user_tables WHERE schemaname = current_schema()
		GROUP BY 1 HAVING sum(pg_relation_size(relid)) > 0 ORDER BY bytes DESC`)
	if err != nil {
		return nil, err
	}
	indexes := map[string][]IndexStorage{}
	err = l.query(ctx, func() { clear(indexes) }, func(rows pgx.Rows) error {
		var table string
		var i IndexStorage
		if err := rows.Scan(&table, &i.Index, &i.Bytes); err != nil {
			return err
		}
		indexes[table] = append(indexes[table], i)
		return nil
	}, `SELECT coalesce(pg_partition_root(relid), relid)::regclass::text, coalesce(pg_partition_root(indexrelid), indexrelid)::regclass::text,
			sum(pg_relation_size(indexrelid))::int8 AS bytes
		FROM pg_stat_user_indexes WHERE schemaname = current_schema()
		GROUP BY 1, 2 ORDER BY bytes DESC`)
	for i := range tables {
		tables[i].Indexes = indexes[tables[i].Table]
	}
	return tables, err
}
