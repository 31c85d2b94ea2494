package profile

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Duration is a time.Duration whose text may start with days: 90d, 1d12h.
type Duration time.Duration

// D returns the duration as the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String writes whole days as such and the rest as time.Duration does.
func (d Duration) String() string {
	const day = 24 * time.Hour
	if t := d.D(); t >= day && t%day == 0 {
		return strconv.Itoa(int(t/day)) + "d"
	}
	return d.D().String()
}

// ParseDuration reads what time.ParseDuration reads, after an optional number of days.
func ParseDuration(s string) (Duration, error) {
	var days int64
	rest := s
	if d, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(d, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration such as 90d or 1h30m", s)
		}
		if days, rest = int64(n), after; rest == "" {
			rest = "0s"
		}
	}
	t, err := time.ParseDuration(rest)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 90d or 1h30m", s)
	}
	return Duration(time.Duration(days)*24*time.Hour + t), nil
}

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (d *Duration) UnmarshalYAML(b []byte) (err error) {
	var s string
	if err = yaml.Unmarshal(b, &s); err != nil {
		return err
	}
	*d, err = ParseDuration(s)
	return err
}

// MarshalJSON writes the text form, for the canonical form of a profile.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }
