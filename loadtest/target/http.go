package target

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/wire"
)

// httpTarget is what the targets over HTTP share.
type httpTarget struct{ client *wire.Client }

func (t httpTarget) Warm(ctx context.Context) error { return t.client.Warm(ctx) }
func (t httpTarget) Close() error                   { return t.client.Close() }

// send posts and returns the body of a 2xx answer.
func (t httpTarget) send(ctx context.Context, r *wire.Request) (*wire.Response, error) {
	res, err := t.client.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	if res.Status/100 != 2 {
		return nil, httpFailure(res)
	}
	return res, nil
}

// httpFailure reads RFC 9457's type where there is one, for its kinds say more than a
// status.
func httpFailure(res *wire.Response) *Failure {
	const most = 1200 // bytes of an unknown answer; 300 characters are kept
	f := &Failure{Kind: "http_" + strconv.Itoa(res.Status), Detail: string(res.Body[:min(len(res.Body), most)])}
	if res.Header.Get("Content-Type") == "application/problem+json" {
		var p struct{ Type, Detail, Field, Rule string }
		if json.Unmarshal(res.Body, &p) == nil {
			for _, k := range problem.Kinds {
				if k.Type() == p.Type {
					f.Kind, f.Detail = string(k), strings.TrimSpace(p.Field+" "+p.Rule+" "+p.Detail)
				}
			}
		}
	}
	return f
}

// unmarshal decodes a JSON answer.
func unmarshal(res *wire.Response, into any) error {
	if err := json.Unmarshal(res.Body, into); err != nil {
		return failure("answer", "not the JSON expected: %v", err)
	}
	return nil
}

// serverTiming reads the Server-Timing header: name;dur=milliseconds, separated by
// commas (W3C Server Timing). What it cannot read it passes over.
func serverTiming(values []string) []engine.Phase {
	var out []engine.Phase
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			name, rest, _ := strings.Cut(strings.TrimSpace(part), ";")
			for parameter := range strings.SplitSeq(rest, ";") {
				text, ok := strings.CutPrefix(strings.TrimSpace(parameter), "dur=")
				if !ok {
					continue
				}
				if ms, err := strconv.ParseFloat(text, 64); err == nil && ms >= 0 && ms < 3.6e6 {
					out = append(out, engine.Phase{Name: name, Duration: time.Duration(ms * float64(time.Millisecond))})
				}
			}
		}
	}
	return out
}

var errNeedsURL = errors.New("the target needs --url")

func requireURL(c Config, scheme string) error {
	if c.URL == "" {
		return fmt.Errorf("%w, for example %s", errNeedsURL, scheme)
	}
	return nil
}
