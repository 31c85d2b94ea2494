package ocsp

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/presence"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

const (
	// reportFor is how long the report of a responder that is heard no more is kept.
	reportFor = time.Minute
	// maxReports bounds the reports in Redis.
	maxReports = 1024
)

// report leaves word of this responder in Redis until ctx ends: it has no other way
// to those who want to know.
func (r *Responder) report(ctx context.Context, to *Store) {
	reporter := presence.NewReporter(presence.Responder, "", r.describe)
	reporter.Run(ctx, to.PutReport, func(err error) {
		if redis.HasErrorPrefix(err, "READONLY") {
			r.deps.Log.Warn("the status of the service lacks this responder: its Redis is a replica; name the primary in report_to", "error", err)
			return
		}
		r.deps.Log.Debug("this responder cannot report", "error", err)
	})
}

// describe fills in what this responder reports of itself.
func (r *Responder) describe(m *certmillv1.RoleStatus) {
	presence.State(m, r.Ready())
	records, _ := r.cache.size()
	m.Bounds = append(m.Bounds,
		&certmillv1.Bound{Name: "redis_waiting", Used: int64(len(r.fetch.queue)), Max: int64(cap(r.fetch.queue))},
	)
	m.Ocsp = &certmillv1.OCSPStatus{Records: int64(records)}
	if d := r.directory.Load(); d != nil {
		m.Ocsp.Complete = d.complete
	}
}

// PutReport keeps what a responder says of itself.
func (s *Store) PutReport(ctx context.Context, m *certmillv1.RoleStatus) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if err := s.client.HSet(ctx, s.keys.presence, m.GetInstance(), data).Err(); err != nil {
		return fmt.Errorf("writing a report to Redis: %w", err)
	}
	return nil
}

// Reports returns what responders said of themselves within the last minute, and
// forgets what is older.
func (s *Store) Reports(ctx context.Context, now time.Time) (reports []*certmillv1.RoleStatus, err error) {
	n, err := s.client.HLen(ctx, s.keys.presence).Result()
	if err != nil {
		return nil, fmt.Errorf("counting the reports in Redis: %w", err)
	}
	if n > maxReports { // those who live write theirs again
		return nil, s.client.Del(ctx, s.keys.presence).Err()
	}
	all, err := s.client.HGetAll(ctx, s.keys.presence).Result()
	if err != nil {
		return nil, fmt.Errorf("reading the reports in Redis: %w", err)
	}
	var gone []string
	for instance, data := range all {
		m := &certmillv1.RoleStatus{}
		if err := proto.Unmarshal([]byte(data), m); err != nil || m.Role != presence.Responder || now.Sub(m.GetReported().AsTime()) > reportFor {
			gone = append(gone, instance)
			continue
		}
		reports = append(reports, m)
	}
	if len(gone) > 0 {
		err = s.client.HDel(ctx, s.keys.presence, gone...).Err()
	}
	return reports, err
}
