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

// What a terminal is told. The second screen keeps what stood in the first.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	toLineEnd   = "\x1b[K"
	toScreenEnd = "\x1b[J"
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
seconds, with the rate of the last minutes. Ctrl-C ends it. Where the output is no
terminal the screens follow each other.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if every < time.Second {
				return usage("--every must be at least 1s")
			}
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				t := &top{client: g, out: c.OutOrStdout(), terminal: isTerminal(c.OutOrStdout())}
				return t.run(ctx, every, count)
			})
		},
	}
	c.Flags().DurationVar(&every, "every", 2*time.Second, "how often to look")
	c.Flags().IntVar(&count, "count", 0, "end after so many looks (0: never)")
	addContextFlags(c)
	return c
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// top is one session of the command.
type top struct {
	client   *client.Client
	out      io.Writer
	terminal bool
	rates    []float64
}

// run looks until ctx ends. A gateway that does not answer is asked again: who watches
// an outage must not lose the screen.
func (t *top) run(ctx context.Context, every time.Duration, count int) error {
	if t.terminal {
		_, _ = io.WriteString(t.out, enterScreen)
		defer func() { _, _ = io.WriteString(t.out, leaveScreen) }()
	}
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

// show writes one screen, at once, so that it does not flicker.
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
	text := b.String()
	if t.terminal {
		text = home + strings.ReplaceAll(text, "\n", toLineEnd+"\n") + toScreenEnd
	} else {
		text += "\n"
	}
	_, err := fmt.Fprint(t.out, text)
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
