package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/certmill/certmill/loadtest/observe"
)

// What must be held.
const (
	leastGoodput  = 0.9
	mostRefusal   = 5.0 // milliseconds, p99
	leastServed   = 0.95
	mostRecovery  = 2 * time.Second
	mostMemoryMiB = 256
)

// figures are what a run found; its JSON is the file that it leaves. Times are in
// milliseconds unless they say otherwise, rates per second.
type figures struct {
	Machine observe.Machine `json:"machine"`
	// Nominal is what the HSMs sign, Capacity what callers got who asked again as soon as
	// they were answered.
	Nominal  float64 `json:"nominal_per_second"`
	Capacity float64 `json:"capacity_per_second"`
	Factor   float64 `json:"factor"`
	Calm     calm    `json:"calm"`

	Offered  float64 `json:"offered_per_second"`
	Goodput  float64 `json:"goodput_per_second"`
	Wait     quant   `json:"served_ms"`
	Refused  int     `json:"refused"`
	Unhinted int     `json:"refused_without_retry_after"`
	Other    int     `json:"neither_served_nor_refused"`
	// Refusal is the time of a refusal: by the service's own Server-Timing, as the prober
	// saw it from a process of its own, and as the flooding process saw it in its queues.
	Refusal struct {
		Service quant `json:"service_ms"`
		Prober  quant `json:"prober_ms"`
		Flooder quant `json:"flooder_ms"`
	} `json:"refusal"`
	Polite struct {
		Asked  int     `json:"asked"`
		Served float64 `json:"served_share"`
		Wait   quant   `json:"served_ms"`
	} `json:"polite"`
	RecoverySeconds float64           `json:"recovery_seconds"`
	Roles           map[string]memory `json:"memory_mib"`
	// Cores are how many cores each role had busy, and the machine.
	Cores map[string]float64 `json:"busy_cores"`
}

type memory struct {
	Before int64 `json:"before"`
	Peak   int64 `json:"peak"`
}

// calm is how the polite caller is served before the flood.
type calm struct {
	P50, P90, P99 float64
}

// quant are quantiles of times in milliseconds.
type quant struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

func newQuant(ms []float64) quant {
	slices.Sort(ms)
	return quant{Count: len(ms), P50: at(ms, 0.5), P99: at(ms, 0.99), P999: at(ms, 0.999), Max: at(ms, 1)}
}

// at returns the q-th of sorted values; 0 where there are none.
func at(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func newCalm(all []result) calm {
	ms := times(all, (*result).ok, took)
	slices.Sort(ms)
	return calm{P50: at(ms, 0.5), P90: at(ms, 0.9), P99: at(ms, 0.99)}
}

// times returns the times of those requests that are meant.
func times(all []result, which func(*result) bool, of func(*result) float64) (ms []float64) {
	for i := range all {
		if which(&all[i]) {
			ms = append(ms, of(&all[i]))
		}
	}
	return ms
}

func took(r *result) float64      { return milliseconds(r.took()) }
func sinceSent(r *result) float64 { return milliseconds(r.Done.Sub(r.Sent)) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func (f *figures) use(u observe.Use) {
	f.Cores = map[string]float64{"machine": u.Machine}
	for _, r := range u.Roles {
		f.Cores[r.Name] = r.Cores
	}
}

// judge reads the figures out of what the callers got. The flood lasted from began to
// end.
func (f *figures) judge(began, end time.Time, flooded, polite, probed []result) {
	seconds := end.Sub(began).Seconds()
	everybody := slices.Concat(flooded, polite, probed)
	served := 0
	for i := range everybody {
		r := &everybody[i]
		switch {
		case r.ok() && !r.Done.After(end):
			served++
		case r.ok():
		case !r.refused():
			f.Other++
		case !r.Hinted:
			f.Unhinted++
		}
	}
	f.Offered, f.Goodput = float64(len(flooded))/seconds, float64(served)/seconds
	f.Refused = count(everybody, (*result).refused)
	f.Wait = newQuant(times(flooded, (*result).ok, took))
	f.Refusal.Service = newQuant(times(everybody, func(r *result) bool { return r.refused() && r.Served >= 0 }, func(r *result) float64 { return r.Served }))
	f.Refusal.Prober = newQuant(times(probed, (*result).refused, sinceSent))
	f.Refusal.Flooder = newQuant(times(flooded, (*result).refused, sinceSent))
	during := slices.DeleteFunc(slices.Clone(polite), func(r result) bool { return r.Due.After(end) })
	f.Polite.Asked = len(during)
	f.Polite.Served = float64(count(during, (*result).ok)) / float64(max(1, len(during)))
	f.Polite.Wait = newQuant(times(during, (*result).ok, took))
	f.RecoverySeconds = f.recovery(end, polite).Seconds()
}

// recovery is how long after the flood the polite caller's requests are as before it:
// from there on nine of ten in a row are answered within twice what 99 of 100 took.
func (f *figures) recovery(end time.Time, polite []result) time.Duration {
	const row, good = 10, 9
	late := slices.DeleteFunc(slices.Clone(polite), func(r result) bool { return r.Due.Before(end) })
	slices.SortFunc(late, func(a, b result) int { return a.Due.Compare(b.Due) })
	normal := func(r *result) bool { return r.ok() && took(r) <= 2*f.Calm.P99 }
	for i := 0; i+row <= len(late); i++ {
		if normal(&late[i]) && count(late[i:i+row], normal) >= good {
			return late[i].Due.Sub(end)
		}
	}
	return after
}

// missed returns what was not held of all that must be.
func (f *figures) missed() (missed []string) {
	for _, c := range []struct {
		what string
		held bool
	}{
		{"something is refused", f.Refused > 0 && f.Refusal.Prober.Count > 0},
		{"each refusal has a Retry-After", f.Unhinted == 0},
		{"each answer is a certificate or a refusal", f.Other == 0},
		{fmt.Sprintf("goodput at least %.2f of the capacity", leastGoodput), f.Goodput >= leastGoodput*f.Capacity},
		{fmt.Sprintf("a refusal takes the service less than %.0f ms (p99)", mostRefusal), f.Refusal.Service.P99 < mostRefusal},
		{fmt.Sprintf("a refusal reaches the prober in less than %.0f ms (p99)", mostRefusal), f.Refusal.Prober.P99 < mostRefusal},
		{fmt.Sprintf("the polite caller gets at least %.2f", leastServed), f.Polite.Served >= leastServed},
		{fmt.Sprintf("back to normal within %s", mostRecovery), f.RecoverySeconds < mostRecovery.Seconds()},
	} {
		if !c.held {
			missed = append(missed, c.what)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.Roles)) {
		if m := f.Roles[name]; m.Peak-m.Before > mostMemoryMiB {
			missed = append(missed, fmt.Sprintf("%s takes less than %d MiB more", name, mostMemoryMiB))
		}
	}
	return missed
}

func (f *figures) print() {
	q := func(q quant) string {
		return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms, p99.9 %.2f ms, max %.1f ms (%d)", q.P50, q.P99, q.P999, q.Max, q.Count)
	}
	fmt.Printf("%s\n", f.Machine)
	fmt.Printf("capacity                 %.0f/s, of %.0f/s that the HSMs sign; alone a certificate takes p50 %.0f ms, p99 %.0f ms\n", f.Capacity, f.Nominal, f.Calm.P50, f.Calm.P99)
	fmt.Printf("offered                  %.0f/s, %.1f times as much\n", f.Offered, f.Offered/f.Capacity)
	fmt.Printf("goodput                  %.0f/s, %.2f of the capacity (at least %.2f); served in %s\n", f.Goodput, f.Goodput/f.Capacity, leastGoodput, q(f.Wait))
	fmt.Printf("refused                  %d, without Retry-After %d; neither served nor refused %d\n", f.Refused, f.Unhinted, f.Other)
	fmt.Printf("a refusal: the service   %s (p99 below %.0f ms)\n", q(f.Refusal.Service), mostRefusal)
	fmt.Printf("  the prober             %s (p99 below %.0f ms)\n", q(f.Refusal.Prober), mostRefusal)
	fmt.Printf("  the flooding process   %s (its own queues included)\n", q(f.Refusal.Flooder))
	fmt.Printf("the polite caller        %.3f of %d served (at least %.2f), %s\n", f.Polite.Served, f.Polite.Asked, leastServed, q(f.Polite.Wait))
	fmt.Printf("back to normal after     %.2f s (below %s)\n", f.RecoverySeconds, mostRecovery)
	fmt.Printf("memory, before and peak ")
	for _, name := range slices.Sorted(maps.Keys(f.Roles)) {
		fmt.Printf(" %s %d %d MiB;", name, f.Roles[name].Before, f.Roles[name].Peak)
	}
	fmt.Printf("\nbusy cores              ")
	for _, name := range slices.Sorted(maps.Keys(f.Cores)) {
		fmt.Printf(" %s %.2f;", name, f.Cores[name])
	}
	fmt.Println()
}
