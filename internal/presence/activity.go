package presence

import (
	"cmp"
	"slices"
	"time"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Sum adds up what several gateways issued in windows of the same length.
func Sum(all []*certmillv1.Activity) *certmillv1.Activity {
	sum := &certmillv1.Activity{}
	buckets := map[float64]*certmillv1.LatencyBucket{}
	for _, a := range all {
		sum.Seconds = max(sum.Seconds, a.GetSeconds())
		sum.Issued += a.GetIssued()
		sum.Failed += a.GetFailed()
		sum.Refused += a.GetRefused()
		for _, b := range a.GetLatency() {
			if buckets[b.Seconds] == nil {
				buckets[b.Seconds] = &certmillv1.LatencyBucket{Seconds: b.Seconds}
				sum.Latency = append(sum.Latency, buckets[b.Seconds])
			}
			buckets[b.Seconds].Count += b.Count
		}
	}
	slices.SortFunc(sum.Latency, func(a, b *certmillv1.LatencyBucket) int {
		if (a.Seconds == 0) != (b.Seconds == 0) { // 0 has no upper bound: the last
			return cmp.Compare(b.Seconds, a.Seconds)
		}
		return cmp.Compare(a.Seconds, b.Seconds)
	})
	return sum
}

// Rate returns the certificates issued per second.
func Rate(a *certmillv1.Activity) float64 {
	if a.GetSeconds() == 0 {
		return 0
	}
	return float64(a.Issued) / a.Seconds
}

// Quantile returns the latency below which a share q of what was issued stayed, as the
// upper bound of its bucket: 0 where nothing was issued, 30s for what took longer.
func Quantile(a *certmillv1.Activity, q float64) time.Duration {
	var total, below int64
	for _, b := range a.GetLatency() {
		total += b.Count
	}
	for _, b := range a.GetLatency() {
		if below += b.Count; float64(below) >= q*float64(total) {
			if b.Seconds == 0 {
				break
			}
			return time.Duration(b.Seconds * float64(time.Second))
		}
	}
	if total == 0 {
		return 0
	}
	return time.Duration(latencies[len(latencies)-1] * float64(time.Second))
}
