package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/loadtest/fill"
)

func fillCommand() *cobra.Command {
	cfg := fill.Config{}
	var dir string
	c := &cobra.Command{
		Use:   "fill --dev FOLDER",
		Short: "Fill the ledger of a `certmill dev` stack with a history",
		Long: `Fill the ledger of a ` + "`certmill dev`" + ` stack with a history, and say what a certificate
takes there: a service is slower, if at all, on a ledger that has grown. The rows are
those of a mesh, of the size of real certificates, and go in by the ledger's own
commit. Nothing else than a dev stack is filled.`,
		Example: `  certmill loadtest run --dev .certmill --callers 64 --repeat 5 --json empty.json
  certmill loadtest fill --dev .certmill --rows 10000000
  certmill loadtest run --dev .certmill --callers 64 --repeat 5 --json full.json
  certmill loadtest compare empty.json full.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if cfg.Ledger, err = devLedger(dir); err != nil {
				return usage(err)
			}
			return runFill(c, cfg)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dev", "", "folder of the \"certmill dev\" stack")
	f.Int64Var(&cfg.Rows, "rows", 1_000_000, "certificates")
	f.DurationVar(&cfg.Lifetime, "lifetime", 24*time.Hour, "lifetime of each")
	f.DurationVar(&cfg.Over, "over", 4*24*time.Hour, "they were issued in so long a time until now; with 1h nearly all share a table partition with what is issued next")
	f.Int64Var(&cfg.Workloads, "workloads", 100_000, "different callers and names")
	f.IntVar(&cfg.Writers, "writers", 3, "statements at one time")
	return c
}

// devLedger returns where the ledger of a dev stack is.
func devLedger(dir string) (config.Ledger, error) {
	if dir == "" {
		return config.Ledger{}, errors.New("--dev is missing: the folder of a `certmill dev` stack")
	}
	data, err := os.ReadFile(filepath.Join(dir, "config", "signer-1.yaml"))
	if err != nil {
		return config.Ledger{}, fmt.Errorf("%s holds no `certmill dev` stack: %w", dir, err)
	}
	var f struct {
		Ledger config.Ledger `yaml:"ledger"`
	}
	if err := yaml.Unmarshal(data, &f); err != nil {
		return config.Ledger{}, fmt.Errorf("reading the signer's configuration: %w", err)
	}
	return f.Ledger, nil
}

func runFill(c *cobra.Command, cfg fill.Config) error {
	var mu sync.Mutex
	began, last := time.Now(), time.Now()
	result, err := fill.Run(c.Context(), cfg, func(done, of int64) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(last) >= 5*time.Second {
			last = now
			fmt.Fprintf(c.ErrOrStderr(), "%d of %d rows, %.0f/s\n", done, of, float64(done)/now.Sub(began).Seconds())
		}
	})
	if err != nil && (!errors.Is(err, context.Canceled) || result.Rows == 0) {
		return err
	}
	if wantsJSON(c) {
		return json.NewEncoder(c.OutOrStdout()).Encode(result)
	}
	return writeFill(c.OutOrStdout(), result)
}

func writeFill(w io.Writer, r fill.Result) error {
	fmt.Fprintf(w, "%d rows in %.0f s, %.0f/s\n", r.Rows, r.Seconds, float64(r.Rows)/r.Seconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "table or index\trows\tMB\tbytes each\t\n")
	each := func(bytes, rows int64) float64 { return float64(bytes) / float64(max(rows, 1)) }
	for _, s := range r.Storage {
		if s.Rows < 1000 {
			continue // what has few rows is mostly empty pages
		}
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t\n", s.Table, s.Rows, float64(s.Bytes)/1e6, each(s.Bytes, s.Rows))
		for _, i := range s.Indexes {
			fmt.Fprintf(t, "%s\t\t%.0f\t%.0f\t\n", i.Index, float64(i.Bytes)/1e6, each(i.Bytes, s.Rows))
		}
		fmt.Fprintf(t, "together\t\t%.0f\t%.0f\t\n", float64(s.Total())/1e6, each(s.Total(), s.Rows))
	}
	return t.Flush()
}
