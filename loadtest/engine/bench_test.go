package engine

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/loadtest/schedule"
)

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkOpen is what pacing and recording cost, with calls that do nothing: CPU for
// each call and how late it was sent.
func BenchmarkOpen(b *testing.B) {
	for name, rate := range map[string]float64{"rate=1000": 1000, "rate=5000": 5000, "rate=50000": 50_000} {
		b.Run(name, func(b *testing.B) {
			cfg := Config{Duration: time.Duration(float64(b.N) / rate * float64(time.Second)), Timeout: time.Second, InFlight: 64}
			rec := NewRecorder()
			nothing := func(context.Context, Call) Outcome { return Outcome{OK: 1} }
			before := cpuTime(b)
			if err := Open(b.Context(), cfg, schedule.Constant(rate, schedule.Poisson).Arrivals(1), nothing, rec); err != nil {
				b.Fatal(err)
			}
			s := rec.Snapshot(time.Now())
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(max(s.OK, 1)), "cpu-ns/call")
			b.ReportMetric(1000*s.Late.P50, "late-p50-µs")
			b.ReportMetric(1000*s.Late.P99, "late-p99-µs")
		})
	}
}
