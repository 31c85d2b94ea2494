package mesh

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Outcome is what became of the mesh.
type Outcome struct {
	Started time.Time `json:"started"`
	Agents  int       `json:"agents"`
	// Served is how many agents held a valid certificate at the end.
	Served int `json:"served"`
	// Certificates were obtained in all, Renewals of them after the first.
	Certificates int64 `json:"certificates"`
	Renewals     int64 `json:"renewals"`
	// Duplicates are certificates in the ledger beyond those that agents obtained: renewals
	// made twice. -1 where the ledger was not asked.
	Duplicates int64 `json:"duplicate_renewals"`
	// Lost are certificates that agents hold and the ledger does not have.
	Lost int64 `json:"lost"`
	// Wrong are answers for another key or name; Example is the first of them.
	Wrong   int    `json:"wrong"`
	Example string `json:"example,omitempty"`
	// Wait is from wanting a certificate to having it, Refusal from a request to its refusal.
	Wait    Quantiles `json:"wait_ms"`
	Refusal Quantiles `json:"refusal_ms"`
	// Refused counts refused tries by kind; GivenUp how often all five were.
	Refused  map[string]int64  `json:"refused"`
	Examples map[string]string `json:"examples,omitempty"`
	GivenUp  int64             `json:"given_up"`
	// Period is the mean time between two renewals of an agent, Mean the rate of a mesh
	// without a herd: one certificate an agent and period.
	Period float64 `json:"period_seconds"`
	Mean   float64 `json:"mean_rate"`
	// Herd is the peak of each period, as a multiple of Mean.
	Herd []float64 `json:"herd_peak_ratios"`
	// Seconds are the rates.
	Seconds []Rates `json:"seconds"`
	// Late is how many CSRs were made while the clock ran.
	Late int64 `json:"late_csrs"`

	issued []int
	prefix string
	until  time.Time
}

func newOutcome(c *Config, b *book, agents []agent, now time.Time) *Outcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	length := min(int((c.Within+c.For)/time.Second), len(b.seconds))
	o := &Outcome{
		Started: b.started, Agents: c.Agents, Duplicates: -1, Refused: b.kinds, Examples: b.examples, GivenUp: b.given,
		Wait: quantiles(b.waits), Refusal: quantiles(b.refusals), Seconds: b.seconds[:length], Late: c.Material.Late(),
		issued: make([]int, len(agents)), prefix: c.Material.Prefix(), until: now,
	}
	for i := range agents {
		a := &agents[i]
		o.issued[i] = a.issued
		o.Certificates += int64(a.issued)
		o.Renewals += int64(max(a.issued-1, 0))
		if a.wrong != nil {
			if o.Wrong++; o.Example == "" {
				o.Example = a.wrong.Error()
			}
		} else if a.issued > 0 && now.Before(a.notAfter) {
			o.Served++
		}
	}
	if b.renewed > 0 {
		o.Period = (b.period / time.Duration(b.renewed)).Seconds()
		o.herd()
	}
	return o
}

// herd finds the busiest second of each period. The last period ends with the run; what
// is left over at its beginning belongs to the first one, which has the restart.
func (o *Outcome) herd() {
	o.Mean = float64(o.Agents) / o.Period
	whole := max(int(float64(len(o.Seconds))/o.Period), 1)
	end := float64(len(o.Seconds))
	o.Herd = make([]float64, whole)
	for k := whole - 1; k >= 0; k-- {
		begin := end - o.Period
		if k == 0 {
			begin = 0
		}
		for _, s := range o.Seconds[int(max(begin, 0)):int(end)] {
			o.Herd[k] = max(o.Herd[k], float64(s.wanted())/o.Mean)
		}
		end = begin
	}
}

// Count compares the ledger with what the agents obtained, through a gateway as an
// operator or viewer.
func (o *Outcome) Count(ctx context.Context, ca certmillv1.CertificateAuthorityClient) error {
	stored := make([]int, o.Agents)
	request := &certmillv1.ListCertificatesRequest{PageSize: 1000, ExpiresAfter: timestamppb.New(o.Started)}
	for {
		page, err := ca.ListCertificates(ctx, request)
		if err != nil {
			return fmt.Errorf("listing the ledger's certificates: %w", err)
		}
		for _, c := range page.GetCertificates() {
			for _, name := range c.GetNames() {
				rest, mine := strings.CutPrefix(name, "uri:"+o.prefix)
				if n, err := strconv.Atoi(rest); mine && err == nil && n >= 0 && n < len(stored) {
					stored[n]++
				}
			}
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			break
		}
	}
	o.Duplicates = 0
	for n, has := range o.issued {
		o.Duplicates += int64(max(stored[n]-has, 0))
		o.Lost += int64(max(has-stored[n], 0))
	}
	return nil
}

// Failed says why the run must not pass, and nil when it may.
func (o *Outcome) Failed() []string {
	var why []string
	add := func(bad bool, format string, args ...any) {
		if bad {
			why = append(why, fmt.Sprintf(format, args...))
		}
	}
	add(o.Served < o.Agents, "%d agents have no valid certificate", o.Agents-o.Served)
	add(o.Duplicates > 0, "%d certificates were made twice", o.Duplicates)
	add(o.Lost > 0, "%d certificates are not in the ledger", o.Lost)
	add(o.Wrong > 0, "%d answers were wrong: %s", o.Wrong, o.Example)
	return why
}

// Write writes the outcome for people; its last line is for machines.
func (o *Outcome) Write(w io.Writer) error {
	var b strings.Builder
	refused := int64(0)
	for _, n := range o.Refused {
		refused += n
	}
	fmt.Fprintf(&b, "%d certificates, %d of them renewals; %d tries refused, %d times all five\n", o.Certificates, o.Renewals, refused, o.GivenUp)
	fmt.Fprintf(&b, "from wanting to having one  p50 %.0f ms  p99 %.0f ms  longest %.0f ms\n", o.Wait.P50, o.Wait.P99, o.Wait.Max)
	if refused > 0 {
		fmt.Fprintf(&b, "until a refusal             p50 %.1f ms  p99 %.0f ms  longest %.0f ms\n", o.Refusal.P50, o.Refusal.P99, o.Refusal.Max)
		for kind, n := range o.Refused {
			fmt.Fprintf(&b, "  %-14s %d, for example: %s\n", kind, n, o.Examples[kind])
		}
	}
	fmt.Fprintf(&b, "busiest second of each period of %.1f s, as a multiple of the mean of %.0f/s:", o.Period, o.Mean)
	for _, h := range o.Herd {
		fmt.Fprintf(&b, " %.2f", h)
	}
	b.WriteByte('\n')
	if o.Late > 0 {
		fmt.Fprintf(&b, "%d CSRs were made while the clock ran\n", o.Late)
	}
	for _, f := range o.Failed() {
		fmt.Fprintf(&b, "FAILED: %s\n", f)
	}
	first, last := 0.0, 0.0
	if len(o.Herd) > 0 {
		first, last = o.Herd[0], o.Herd[len(o.Herd)-1]
	}
	fmt.Fprintf(&b, "agents=%d served=%d duplicate_renewals=%d herd_peak_ratio_first=%.2f herd_peak_ratio_last=%.2f\n", o.Agents, o.Served, o.Duplicates, first, last)
	_, err := io.WriteString(w, b.String())
	return err
}
