package ledger

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the ledger's own; a Committer has more.
type metrics struct {
	retries    *prometheus.CounterVec
	maintained prometheus.Gauge
	volatile   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, l *Ledger) *metrics {
	f := promauto.With(r)
	for name, p := range map[string]*pgxpool.Pool{"read": l.read, "write": l.write} {
		labels := prometheus.Labels{"pool": name}
		f.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certmill_ledger_connections_in_use", Help: "Sessions that run a statement.", ConstLabels: labels,
		}, func() float64 { return float64(p.Stat().AcquiredConns()) })
		f.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certmill_ledger_connections_limit", Help: "Bound of the pool.", ConstLabels: labels,
		}, func() float64 { return float64(p.Stat().MaxConns()) })
	}
	return &metrics{
		retries: f.NewCounterVec(prometheus.CounterOpts{
			Name: "certmill_ledger_retries_total", Help: "Statements and transactions run again, by cause: conflict (40001 and the like) or ambiguous (a connection was lost).",
		}, []string{"cause"}),
		volatile: f.NewGauge(prometheus.GaugeOpts{
			Name: "certmill_ledger_volatile_settings", Help: "How many settings of the database let it lose what it has acknowledged (fsync, full_page_writes); 0 wherever certificates matter.",
		}),
		maintained: f.NewGauge(prometheus.GaugeOpts{
			Name: "certmill_ledger_maintained_timestamp_seconds", Help: "When this process last finished or skipped Maintain without an error. The ledger wants it once a day from one process at least.",
		}),
	}
}

// DescribeMetrics registers the metrics of a ledger that is not there, for their
// reference. They must not be asked for values.
func DescribeMetrics(r prometheus.Registerer) { newMetrics(r, &Ledger{}) }
