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

// BenchmarkProgress is what a view costs each second beside a run, and BenchmarkSnapshot
// what a report does at its end.
func BenchmarkProgress(b *testing.B) {
	benchmarkLook(b, func(r *Recorder, now time.Time) { r.Progress(now) })
}

func BenchmarkSnapshot(b *testing.B) {
	benchmarkLook(b, func(r *Recorder, now time.Time) { r.Snapshot(now) })
}

func benchmarkLook(b *testing.B, look func(*Recorder, time.Time)) {
	rec, start := NewRecorder(), time.Now()
	rec.begin(start, start, start.Add(time.Hour))
	for i := range 100_000 {
		due := start.Add(time.Duration(i) * time.Millisecond / 2)
		took := time.Duration(1+i%40_000) * time.Microsecond
		rec.record(due, due, due.Add(took), Outcome{OK: 1, Phases: []Phase{{"queue", took}, {"hsm", took}, {"commit", took}, {"total", took}}})
	}
	for b.Loop() {
		look(rec, start.Add(time.Minute))
	}
}
