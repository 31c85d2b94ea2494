package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/client"
	"github.com/certmill/certmill/internal/presence"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// topKept is how many samples the line of rates holds.
const topKept = 60

func topCommand() *cobra.Command {
	var every time.Duration
	var count int
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch the whole service live, in the terminal",
		Long: `Watch the whole service live, in the terminal: what "certmill status" shows, every two
seconds, with the rate of the last minutes. The key q or Ctrl-C ends it. Where the output
is no terminal the screens follow each other.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if every < time.Second {
				return usage("--every must be at least 1s")
			}
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				t := &top{client: g, out: c.OutOrStdout()}
				if isTerminal(t.out) {
					ctx, t.screen = enterTerminal(ctx, t.out.(*os.File))
					defer t.screen.leave()
				}
				return t.run(ctx, every, count)
			})
		},
	}
	c.Flags().DurationVar(&every, "every", 2*time.Second, "how often to look")
	c.Flags().IntVar(&count, "count", 0, "end after so many looks (0: never)")
	addContextFlags(c)
	return c
}

// top is one session of the command.
type top struct {
	client *client.Client
	out    io.Writer
	screen *screen // nil where out is no terminal
	rates  []float64
}

// run looks until ctx ends. A gateway that does not answer is asked again: who watches
// an outage must not lose the screen.
func (t *top) run(ctx context.Context, every time.Duration, count int) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var failure error
	for n := 1; ; n++ {
		callCtx, cancel := context.WithTimeout(ctx, every+5*time.Second)
		m, err := t.client.Operations.GetStatus(callCtx, &certmillv1.GetStatusRequest{})
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		failure = client.Problem(err)
		if err == nil {
			failure = nil
		}
		if err := t.show(m, failure); err != nil {
			return err
		}
		if n == count {
			return failure
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// show writes one screen.
func (t *top) show(m *certmillv1.ServiceStatus, failure error) error {
	var b bytes.Buffer
	w := &writer{to: &b}
	if failure != nil {
		w.line("no answer at %s: %v", time.Now().Format(time.TimeOnly), failure)
	} else {
		t.rates = append(t.rates, presence.Rate(m.GetIssuance()))
		t.rates = t.rates[max(0, len(t.rates)-topKept):]
		writeStatus(w, m)
		w.line("")
		w.line("certificates/s  %s  %.1f", sparkline(t.rates), t.rates[len(t.rates)-1])
	}
	if t.screen != nil {
		return t.screen.show(b.String())
	}
	_, err := fmt.Fprintln(t.out, b.String())
	return err
}

// sparkline draws values as bars of eight heights.
func sparkline(values []float64) string {
	const bars = "▁▂▃▄▅▆▇█"
	highest := 1.0
	for _, v := range values {
		highest = max(highest, v)
	}
	var b strings.Builder
	for _, v := range values {
		b.WriteRune([]rune(bars)[int(v/highest*7)])
	}
	return b.String()
}
