package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Value reads a gauge or a counter: what a process tells of itself in another way than
// by its metrics must be the same figure.
func Value(m prometheus.Metric) float64 {
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		return 0 // a metric of this package's library always writes
	}
	return d.GetGauge().GetValue() + d.GetCounter().GetValue()
}

// Time reads a gauge that holds Unix seconds; nil where it holds 0.
func Time(m prometheus.Metric) *timestamppb.Timestamp {
	seconds := Value(m)
	if seconds == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(int64(seconds), 0))
}
