package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/deploy/local"
)

const long = `Break the service on purpose, and show that nothing is lost.

It starts the whole service: a NATS cluster of three, PostgreSQL, Redis, and two of
each role, every process in a network namespace of its own. Clients ask for
certificates, place orders, revoke and read OCSP, with idempotent retries. Meanwhile
processes are killed and frozen, links cut one way and both and slowed, the ledger's
disk filled, a signer's clock skewed, all roles restarted, and signers added and taken.

Afterwards a judge reads the history of every call, and the ledger, and prints one
line for each invariant. The same seed makes the same faults in the same order.

Namespaces need root and iproute2 on Linux. Without, --plain runs plain processes and
leaves out what needs a network of its own.

Exit codes beside those of every command: 1 an invariant is broken.`

// errBroken says that the service broke a promise.
var errBroken = errors.New("an invariant is broken")

// exitError is the exit code of the process that had the namespaces.
type exitError int

// Error says that the other process has said it all.
func (e exitError) Error() string {
	return "the run inside its namespaces failed; its messages are above"
}

// ExitCode is the exit code of this process.
func (e exitError) ExitCode() int { return int(e) }

// Command returns `chaos`, for the program to mount.
func Command() *cobra.Command {
	o := Options{}
	c := &cobra.Command{
		Use: "chaos", Short: "Break the service on purpose, and show that nothing is lost", Long: long, Args: cobra.NoArgs,
		Example: `  certmill chaos                              three minutes
  certmill chaos --duration 1h --rate 100     longer and harder
  certmill chaos --seed 42 --faults kill,disk the same again, and only some`,
	}
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", "", "folder for data, logs and history.jsonl (default: a new one in the temporary folder)")
	f.Uint64Var(&o.Seed, "seed", 0, "what decides the faults (default: a random one, which is printed)")
	f.DurationVar(&o.Duration, "duration", 130*time.Second, "how long faults are made; start and end take about half a minute more")
	f.DurationVar(&o.FaultTime, "fault-time", 3*time.Second, "how long a fault lasts")
	f.Float64Var(&o.Rate, "rate", 30, "operations begun a second")
	f.StringSliceVar(&o.Faults, "faults", nil, "only faults whose names hold one of these")
	f.BoolVar(&o.Plain, "plain", false, "plain processes, without namespaces")
	c.RunE = func(c *cobra.Command, _ []string) error { return command(c, o) }
	c.AddCommand(natsNode())
	return c
}

func command(c *cobra.Command, o Options) error {
	if o.Rate <= 0 || o.Rate > 10_000 || o.Duration <= 0 || o.FaultTime <= 0 {
		return errors.New("--rate must be above 0 and at most 10000, --duration and --fault-time above 0")
	}
	if !o.Plain && !inside() {
		code, err := runInside(c.Context(), os.Args[1:])
		switch {
		case errors.Is(err, errNoNamespaces):
			fmt.Fprintln(c.ErrOrStderr(), err, "- going on with plain processes: links are not cut, disks not filled")
			o.Plain = true
		case err != nil:
			return err
		case code != 0:
			return exitError(code)
		default:
			return nil
		}
	}
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "certmill-chaos-")
		if err != nil {
			return err
		}
		o.Dir = dir
	}
	o.Dir, _ = filepath.Abs(o.Dir)
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1_000_000) + 1
	}
	out := c.OutOrStdout()
	asJSON, _ := c.Flags().GetString("output")
	progress := out
	if asJSON == "json" {
		progress = c.ErrOrStderr()
	}
	o.Say = func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }
	o.Say("seed %d; everything is in %s", o.Seed, o.Dir)
	result, err := Run(c.Context(), o)
	if err != nil {
		return err
	}
	if asJSON == "json" {
		if err := json.NewEncoder(out).Encode(result); err != nil {
			return err
		}
	} else {
		result.Table(out)
	}
	if result.Broken() > 0 {
		return fmt.Errorf("%w: repeat it with --seed %d; the history is %s", errBroken, result.Seed, result.History)
	}
	return nil
}

// natsNode runs one node of the cluster: the NATS server is a library of this program.
func natsNode() *cobra.Command {
	return &cobra.Command{
		Use: "nats-node FILE", Short: "Run a NATS server by its configuration file", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(c *cobra.Command, args []string) error { return local.RunNATS(c.Context(), args[0]) },
	}
}
