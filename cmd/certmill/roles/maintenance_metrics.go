package roles

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/ledger"
)

// maintenanceMetrics are figures of the whole ledger, counted with each upkeep.
type maintenanceMetrics struct {
	expiring          *prometheus.GaugeVec
	lastWeek, forsake prometheus.Gauge
}

func newMaintenanceMetrics(r prometheus.Registerer) *maintenanceMetrics {
	m := &maintenanceMetrics{
		expiring: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "certmill_ledger_expiring_certificates",
			Help: "Certificates that live for more than 8 days, are not revoked and expire within 1d, 7d or 30d, as last counted."}, []string{"within"}),
		lastWeek: prometheus.NewGauge(prometheus.GaugeOpts{Name: "certmill_ledger_last_week_certificates",
			Help: "Certificates looked at, up to 1000, that live for more than 8 days and have less than 7 days left."}),
		forsake: prometheus.NewGauge(prometheus.GaugeOpts{Name: "certmill_ledger_last_week_unrenewed_certificates",
			Help: "Those of certmill_ledger_last_week_certificates for whose first name there is no later certificate."}),
	}
	r.MustRegister(m.expiring, m.lastWeek, m.forsake)
	return m
}

// measure counts.
func (m *maintenanceMetrics) measure(ctx context.Context, book *ledger.Ledger) error {
	owners, _, err := book.Expiring(ctx)
	if err != nil {
		return err
	}
	var sum ledger.Expiring
	for _, o := range owners {
		sum.Within1 += o.Within1
		sum.Within7 += o.Within7
		sum.Within30 += o.Within30
	}
	m.expiring.WithLabelValues("1d").Set(float64(sum.Within1))
	m.expiring.WithLabelValues("7d").Set(float64(sum.Within7))
	m.expiring.WithLabelValues("30d").Set(float64(sum.Within30))
	seen, without, err := book.Successors(ctx)
	if err != nil {
		return err
	}
	m.lastWeek.Set(float64(seen))
	m.forsake.Set(float64(without))
	return nil
}
