package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/queue"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

type dispatchMetrics struct {
	joined, timeouts, strays, forged, unsure prometheus.Counter
	refused, resends, failovers              *prometheus.CounterVec
	publish, batch                           prometheus.Histogram
	depth, depthBytes, oldest                prometheus.Gauge
}

func newDispatchMetrics(reg prometheus.Registerer, d *Dispatcher) *dispatchMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &dispatchMetrics{
		joined:   counter("certmill_gateway_dispatch_joined_total", "Calls that joined an equal one already waiting."),
		timeouts: counter("certmill_gateway_dispatch_timeouts_total", "Calls that ended without an answer."),
		strays:   counter("certmill_gateway_dispatch_strays_total", "Results that nobody waited for."),
		forged:   counter("certmill_gateway_dispatch_forged_total", "Replies with a wrong authentication code."),
		unsure:   counter("certmill_gateway_dispatch_unsure_total", "Messages of which it is not known whether the broker has them."),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_gateway_dispatch_refused_total",
			Help: "Calls or messages refused, by bound: pending, queue, nats."}, []string{"bound"}),
		resends: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_gateway_dispatch_resends_total",
			Help: "Requests sent again, by reason: late, failed."}, []string{"reason"}),
		failovers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_gateway_dispatch_failovers_total",
			Help: "Requests that went to another of their profile's issuers, by the issuer that they left and by reason: away (none of its signers reports or answers), silent (taken over while they waited for it), refused (by its queue), failed (its signer could not)."}, []string{"issuer", "reason"}),
		publish: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "certmill_queue_publish_seconds",
			Help: "Time until the broker had a message.", Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16)}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "certmill_queue_batch_requests",
			Help: "Requests in a message.", Buckets: []float64{1, 2, 4, 8, 16, queue.MaxBatch}}),
		depth: prometheus.NewGauge(prometheus.GaugeOpts{Name: "certmill_queue_depth_messages",
			Help: "Messages in the queue or with a signer, sampled."}),
		depthBytes: prometheus.NewGauge(prometheus.GaugeOpts{Name: "certmill_queue_depth_bytes",
			Help: "Bytes in the queue or with a signer, sampled."}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{Name: "certmill_queue_oldest_message_seconds",
			Help: "Age of the oldest message in the queue or with a signer, sampled; 0 in an empty queue. Signers are added when it grows."}),
	}
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			d.mu.Lock()
			defer d.mu.Unlock()
			return float64(value())
		})
	}
	reg.MustRegister(m.joined, m.timeouts, m.strays, m.forged, m.unsure, m.refused, m.resends, m.failovers, &issuersUp{d}, m.publish, m.batch, m.depth, m.depthBytes, m.oldest,
		gauge("certmill_gateway_dispatch_pending", "Calls that wait for an answer.", func() int { return d.wait }),
		gauge("certmill_gateway_dispatch_max_pending", "Bound of certmill_gateway_dispatch_pending.", func() int { return d.cfg.MaxPending }),
		gauge("certmill_gateway_dispatch_max_in_flight", "Bound of requests sent, for each issuer and priority.", func() int { return d.cfg.MaxInFlight }),
		gauge("certmill_gateway_dispatch_in_flight", "Requests that are with the queue or a signer.", func() (n int) {
			for _, l := range d.lanes {
				n += l.inFlight
			}
			return n
		}),
		gauge("certmill_gateway_dispatch_waiting", "Requests that wait to be sent.", func() (n int) {
			for _, l := range d.lanes {
				n += l.waiting
			}
			return n
		}))
	return m
}

// issuersUp tells of each issuer that was asked for whether it is away.
type issuersUp struct{ d *Dispatcher }

var issuerUpDesc = prometheus.NewDesc("certmill_gateway_issuer_up",
	"1 for an issuer whose signers report and answer, 0 for one whose requests go to the profile's other issuers, if it has any.", []string{"issuer"}, nil)

// Describe implements prometheus.Collector.
func (u *issuersUp) Describe(ch chan<- *prometheus.Desc) { ch <- issuerUpDesc }

// Collect implements prometheus.Collector.
func (u *issuersUp) Collect(ch chan<- prometheus.Metric) {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	now := time.Now()
	for name := range u.d.issuers {
		up := 1.0
		if u.d.away(name, now) {
			up = 0
		}
		ch <- prometheus.MustNewConstMetric(issuerUpDesc, prometheus.GaugeValue, up, name)
	}
}

// sampleQueue looks at the queue at intervals and on every new connection, until ctx ends.
func (d *Dispatcher) sampleQueue(ctx context.Context) error {
	tick := time.NewTicker(d.cfg.SampleInterval)
	defer tick.Stop()
	for {
		d.sample(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-d.connected:
		case <-tick.C:
		}
	}
}

// sample measures the depth of the queue. Where it has gone it is made again: a broker
// that keeps it in memory has forgotten it after a restart.
func (d *Dispatcher) sample(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	s, err := d.conn.JetStream.Stream(ctx, queue.SignStream)
	switch {
	case err == nil:
		state := s.CachedInfo().State
		d.metrics.depth.Set(float64(state.Msgs))
		d.metrics.depthBytes.Set(float64(state.Bytes))
		m := &certmillv1.QueueStatus{
			Messages: int64(state.Msgs), Bytes: int64(state.Bytes), Sampled: timestamppb.Now(),
			MaxMessages: d.conn.Settings.MaxPending, MaxBytes: d.conn.Settings.MaxPendingBytes,
		}
		if state.Msgs > 0 {
			m.OldestSeconds = max(0, time.Since(state.FirstTime).Seconds())
		}
		d.metrics.oldest.Set(m.OldestSeconds)
		d.queue.Store(m)
	case errors.Is(err, jetstream.ErrStreamNotFound):
		d.log.Warn("the queue's stream has gone and is made again", "error", queue.EnsureStreams(ctx, d.conn.JetStream, d.conn.Settings))
	default:
		d.log.Debug("the queue's depth cannot be read", "error", err)
	}
}
