package loadtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/loadtest/schedule"
	"github.com/certmill/certmill/loadtest/target"
)

// options are what the commands that make load take.
type options struct {
	flags  *pflag.FlagSet // that set them
	target string
	server target.Config
	dev    string

	schedule string
	callers  int
	duration time.Duration
	warmup   time.Duration
	timeout  time.Duration
	inFlight int
	repeat   int
	pause    time.Duration
	seed     uint64

	keyTypes   []string
	keys       int
	csrs       int
	maxReuse   int
	name       string
	commonName bool

	share        float64
	roots        string
	anyNames     bool
	expectNames  []string
	lifetimeLess float64
	row          string
	status       string
	statusWithin time.Duration

	serials string
	issuer  string
	sha256  bool

	watch []string
	tree  int

	objective string
	json      string
	html      string
	save      string
	saveMost  int
	label     string
	every     time.Duration
}

// add registers the flags that every command under load has.
func (o *options) add(f *pflag.FlagSet) {
	o.flags = f
	f.StringVarP(&o.target, "target", "t", "rest", "what to put under load; \"loadtest targets\" lists what there is")
	f.StringVar(&o.dev, "dev", "", "folder of a \"certmill dev\" stack: fills in addresses, credentials, roots and what to watch")
	s := &o.server
	f.StringVarP(&s.URL, "url", "u", "", "address of the target: https://host:port, for gRPC host:port")
	f.StringVar(&s.CAFile, "ca", "", "roots for the target's TLS certificate (PEM)")
	f.StringVar(&s.ServerName, "server-name", "", "the name in that certificate, where it is not the host")
	f.StringVar(&s.CertFile, "cert", "", "client certificate (PEM)")
	f.StringVar(&s.KeyFile, "key", "", "its private key (PEM)")
	f.StringVar(&s.TokenFile, "token-file", "", "file with a bearer token, a Vault token or a cfssl key")
	f.IntVarP(&s.Connections, "connections", "c", 0, "connections kept open (default 64, over gRPC 4), over HTTP at least one for each caller")
	f.IntVar(&s.Batch, "batch", 32, "certificates a call, for the target batch")
	f.StringVar(&s.Profile, "profile", "", "certificate profile asked for")
	f.DurationVar(&s.Lifetime, "lifetime", 0, "lifetime asked for, and checked")
	f.StringVar(&s.Owner, "owner", "", "metadata asked for")
	f.StringVar(&s.Service, "service", "", "metadata asked for")
	f.StringVar(&s.Environment, "environment", "", "metadata asked for")
	f.StringVar(&s.Mount, "mount", "pki", "Vault: mount of the PKI engine")
	f.StringVar(&s.Role, "role", "", "Vault: role")
	f.StringVar(&s.Provisioner, "provisioner", "", "step-ca: name of a JWK provisioner")
	f.StringVar(&s.ProvisionerKeyFile, "provisioner-key", "", "step-ca: its private key, JWK or JWE")
	f.StringVar(&s.ProvisionerPasswordFile, "provisioner-password-file", "", "step-ca: the password of the JWE")
	f.StringVar(&s.ClusterID, "cluster-id", "", "Istio: the clusterid header")

	f.DurationVarP(&o.duration, "duration", "d", 30*time.Second, "how long each run asks, its warm-up included")
	f.DurationVar(&o.warmup, "warmup", 3*time.Second, "the part at the start that does not count")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long a caller waits, from the moment its request was due")
	f.IntVar(&o.inFlight, "in-flight", 1024, "calls that may wait for an answer at one time (over HTTP/1.1 no more than connections); beyond it they wait in the generator, and it counts")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the first run's arrivals; each run after it has the next")

	f.StringSliceVar(&o.keyTypes, "key-type", []string{"p256"}, "p256, p384, ed25519, rsa2048, rsa3072; several take turns")
	f.IntVar(&o.keys, "keys", 0, "different keys of each type (default 256, RSA 8)")
	f.IntVar(&o.csrs, "csrs", 0, "different CSRs (default: as the reuse needs, at least 1024)")
	f.IntVar(&o.maxReuse, "max-reuse", 1000, "how often one CSR may be used; each use has a request id of its own")
	f.StringVar(&o.name, "name", "w{n}.load.test", "name asked for, DNS or URI; {n} is the CSR's number")
	f.BoolVar(&o.commonName, "common-name", false, "put the name into the subject too")

	f.Float64Var(&o.share, "check", 0.05, "share of the answers checked in full; serials are always checked")
	f.StringVar(&o.roots, "roots", "", "roots for the chain of what is issued (PEM)")
	f.BoolVar(&o.anyNames, "any-names", false, "do not check names")
	f.StringSliceVar(&o.expectNames, "expect-name", nil, "names expected in place of the CSR's")
	f.Float64Var(&o.lifetimeLess, "lifetime-less", 0.1, "share by which a lifetime may be shorter than asked for")
	f.StringVar(&o.row, "check-row", "", "certmill gRPC address, host:port: look each checked certificate up in the ledger")
	f.StringVar(&o.status, "check-ocsp", "", "responder's URL: ask for the OCSP status of each checked certificate")
	f.DurationVar(&o.statusWithin, "check-ocsp-within", 5*time.Second, "how soon it must be good")

	f.StringVar(&o.serials, "serials", "", "OCSP: what to ask about: certificates (PEM, as --save writes them) or serials in hexadecimal")
	f.StringVar(&o.issuer, "issuer", "", "OCSP: the issuer's certificate (default: the CA in --serials)")
	f.BoolVar(&o.sha256, "sha256", false, "OCSP: SHA-256 CertIDs")

	f.StringSliceVar(&o.watch, "watch", nil, "role=URL of a role's metrics, for example gateway=http://127.0.0.1:9090/metrics; may be repeated")
	f.IntVar(&o.tree, "watch-tree", 0, "process id: take CPU and memory from it and its descendants")

	f.StringVar(&o.label, "label", "", "what this result is called in a report")
	f.StringVar(&o.json, "json", "", "file for the result as JSON")
	f.StringVar(&o.html, "html", "", "file for the report: one HTML file with plots")
	f.DurationVar(&o.every, "every", 5*time.Second, "how often a line is written where there is no terminal")
}

// validate reports everything that is wrong and can be seen without I/O.
func (o *options) validate() error {
	var errs []error
	if !(o.share >= 0 && o.share <= 1) {
		errs = append(errs, fmt.Errorf("--check is a share, 0 to 1, not %v", o.share))
	}
	if o.server.Lifetime < 0 {
		errs = append(errs, fmt.Errorf("--lifetime is not below zero, as %s is", o.server.Lifetime))
	}
	if !(o.lifetimeLess >= 0 && o.lifetimeLess < 1) {
		errs = append(errs, fmt.Errorf("--lifetime-less is a share, 0 to below 1, not %v", o.lifetimeLess))
	}
	if o.maxReuse < 1 {
		errs = append(errs, fmt.Errorf("--max-reuse must be at least 1, not %d", o.maxReuse))
	}
	if len(o.keyTypes) == 0 {
		errs = append(errs, errors.New("--key-type must not be empty"))
	}
	if o.saveMost < 1 && o.save != "" {
		errs = append(errs, fmt.Errorf("--save-most is at least 1, not %d", o.saveMost))
	}
	if o.tree < 0 {
		errs = append(errs, fmt.Errorf("--watch-tree is a process id, not %d", o.tree))
	} else if o.tree > 0 {
		if _, err := observe.Parent(o.tree); err != nil {
			errs = append(errs, fmt.Errorf("--watch-tree: no process %d can be looked at: %w", o.tree, err))
		}
	}
	for flag, path := range map[string]string{"--json": o.json, "--html": o.html} {
		if folder, err := os.Stat(filepath.Dir(path)); path != "" && (err != nil || !folder.IsDir()) {
			errs = append(errs, fmt.Errorf("%s: there is no folder %s", flag, filepath.Dir(path)))
		}
	}
	if o.duration <= o.warmup || o.warmup < 0 {
		errs = append(errs, fmt.Errorf("--duration %s must be longer than --warmup %s", o.duration, o.warmup))
	}
	for flag, good := range map[string]bool{"--timeout": o.timeout > 0, "--in-flight": o.inFlight > 0, "--every": o.every > 0} {
		if !good {
			errs = append(errs, errors.New(flag+" must be above zero"))
		}
	}
	if o.callers < 0 {
		errs = append(errs, fmt.Errorf("--callers is at least 1, not %d", o.callers))
	}
	if o.inFlight > maxInFlight || o.callers > maxInFlight {
		errs = append(errs, fmt.Errorf("--in-flight and --callers are at most %d", maxInFlight))
	}
	if o.repeat < 1 {
		errs = append(errs, errors.New("--repeat must be at least 1"))
	}
	if o.callers > 0 && o.schedule != "" {
		errs = append(errs, errors.New("--callers is a closed loop and --rate an open one: give one of them"))
	}
	if _, err := report.ParseObjective(o.objective); err != nil {
		errs = append(errs, fmt.Errorf("--objective: %w", err))
	}
	return errors.Join(append(errs, o.idle())...)
}

// maxInFlight bounds the goroutines of a run.
const maxInFlight = 100_000

// plan returns the schedule of the open loop; nil is a closed one.
func (o *options) plan() (schedule.Schedule, error) {
	if o.callers > 0 {
		return nil, nil
	}
	spec := o.schedule
	if spec == "" {
		return nil, errors.New("say how much load: --rate 500 (open loop) or --callers 64 (closed loop)")
	}
	return schedule.Parse(spec)
}

// material returns what is to be made for planned requests.
func (o *options) material(planned int64) material.Config {
	c := material.Config{Keys: o.keys, CSRs: o.csrs, Planned: planned, MaxReuse: o.maxReuse, Name: o.name, CommonName: o.commonName}
	for _, t := range o.keyTypes {
		c.Types = append(c.Types, material.KeyType(t))
	}
	return c
}
