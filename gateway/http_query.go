package gateway

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
)

// query is a checked query string.
type query url.Values

// parseQuery takes each of the allowed parameters at most once, and no others: a
// parameter that is misspelt must not be taken for one that is absent.
func parseQuery(raw string, allowed ...string) (query, error) {
	if raw == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, problem.Rejected("query", "query_syntax", "the query string cannot be read")
	}
	for name, v := range values {
		if !slices.Contains(allowed, name) {
			return nil, problem.Rejected(strings.ToValidUTF8(name, "?"), "unknown_parameter", "this call takes no such parameter; it takes %s", strings.Join(allowed, ", "))
		}
		if len(v) > 1 {
			return nil, problem.Rejected(name, "duplicate_parameter", "the parameter is given twice")
		}
	}
	return query(values), nil
}

func (q query) text(name string) string { return url.Values(q).Get(name) }

func (q query) duration(name string) (*durationpb.Duration, error) {
	s := q.text(name)
	if s == "" {
		return nil, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return nil, problem.Rejected(name, "duration", "%s is a duration such as 3600s, 24h or 7d", name)
	}
	return durationMessage(d), nil
}

// parseDuration reads "3600s", "24h", "7d" and combinations.
func parseDuration(s string) (time.Duration, error) {
	d, err := profile.ParseDuration(s)
	return time.Duration(d), err
}

func durationMessage(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

func (q query) time(name string) (*timestamppb.Timestamp, error) {
	s := q.text(name)
	if s == "" {
		return nil, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return nil, problem.Rejected(name, "time", "%s is a time such as 2026-12-31T23:59:59Z", name)
	}
	return timestamppb.New(t), nil
}

func (q query) pageSize() (int32, error) {
	s := q.text("page_size")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, problem.Rejected("page_size", "page_size", "a page has 1 to 1000 entries")
	}
	return int32(n), nil
}
