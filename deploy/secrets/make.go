package secrets

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Report is what a run found and did.
type Report struct {
	Generation int   `json:"generation"`
	Phase      Phase `json:"phase"`
	// Written lists the files that were made or changed, below the folder.
	Written []string `json:"written"`
	// Expires is when the first of the certificates ends, CAEnds when the CA does.
	Expires time.Time `json:"expires"`
	CAEnds  time.Time `json:"ca_ends"`
}

// errBusy says that another run works on the folder.
var errBusy = errors.New("another run works on this folder of secrets")

// Make makes what the folder lacks and renews what is due. It may be repeated at any
// time, is safe against itself, and changes nothing that need not change. spec is
// remembered in the folder; nil means the one remembered, else DefaultSpec.
func Make(dir string, spec *Spec, now time.Time) (Report, error) {
	return within(dir, spec, func(s state) (state, error) { return s, nil }, now)
}

// Step is one step of a rotation.
type Step string

// The steps, in their order.
const (
	Prepare  Step = "prepare"
	Activate Step = "activate"
	Retire   Step = "retire"
)

// Steps lists the steps of a rotation in their order.
var Steps = []Step{Prepare, Activate, Retire}

// StepError says that a step is not the one that is due.
type StepError struct {
	Step  Step
	Phase Phase
}

// Error names the step that is due.
func (e *StepError) Error() string {
	due := map[Phase]Step{Stable: Prepare, Prepared: Activate, Activated: Retire}
	return fmt.Sprintf("%s is not the step that is due: the secrets are %s, next comes %s", e.Step, e.Phase, due[e.Phase])
}

// Rotate takes one step of a rotation and writes the folder as Make does. After each
// step all parts must be restarted or reloaded, in any order, before the next. A step
// out of turn is a *StepError and changes nothing.
func Rotate(dir string, spec *Spec, step Step, now time.Time) (Report, error) {
	return within(dir, spec, func(s state) (state, error) {
		switch {
		case step == Prepare && s.Phase == Stable:
			s.Phase = Prepared
		case step == Activate && s.Phase == Prepared:
			s.Generation, s.Phase = s.Generation+1, Activated
		case step == Retire && s.Phase == Activated:
			s.Phase = Stable
		default:
			return s, &StepError{step, s.Phase}
		}
		return s, nil
	}, now)
}

// within locks the folder, lets next say which state is wanted, and renders it.
func within(dir string, spec *Spec, next func(state) (state, error), now time.Time) (Report, error) {
	var report Report
	v := vault{filepath.Join(dir, "vault")}
	if err := os.MkdirAll(v.path, 0o700); err != nil {
		return report, err
	}
	lock, err := os.OpenFile(filepath.Join(v.path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return report, err
	}
	defer lock.Close() // and with it the lock goes
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return report, fmt.Errorf("%s: %w", dir, errors.Join(errBusy, err))
	}
	s, err := v.readState()
	if err != nil {
		return report, err
	}
	if spec != nil {
		s.Spec = *spec
	}
	if err := s.Spec.Validate(); err != nil {
		return report, err
	}
	if s, err = next(s); err != nil {
		return report, err
	}
	report.Generation, report.Phase = s.Generation, s.Phase
	if err := v.ensurePINs(); err != nil {
		return report, err
	}
	var accepted []generation
	for _, number := range s.accepted() {
		g, err := v.ensure(number, s.Spec, now)
		if err != nil {
			return report, err
		}
		accepted = append(accepted, g)
	}
	// The state comes last: a run that dies before it is repeated as a whole, and what
	// it has made is found.
	if err := render(dir, s.Spec, accepted, now, &report); err != nil {
		return report, err
	}
	if err := v.writeState(s); err != nil {
		return report, err
	}
	return report, v.forget(accepted)
}

// render writes every part's folder from the generations, the used one first.
func render(dir string, spec Spec, accepted []generation, now time.Time, report *Report) error {
	used := accepted[0]
	ca, err := used.authority()
	if err != nil {
		return err
	}
	report.CAEnds = ca.cert.NotAfter
	shared, err := renderShared(spec, accepted)
	if err != nil {
		return err
	}
	for _, p := range parts {
		files, err := filesOf(p, used, shared)
		if err != nil {
			return err
		}
		for _, name := range p.pins {
			pin, err := os.ReadFile(filepath.Join(dir, "vault", name))
			if err != nil {
				return err
			}
			files[name] = string(pin)
		}
		for name, data := range files {
			changed, err := replace(filepath.Join(dir, p.name, name), []byte(data))
			if err != nil {
				return err
			}
			if changed {
				report.Written = append(report.Written, filepath.Join(p.name, name))
			}
		}
		if err := renderLeaf(dir, p, spec, ca, now, report); err != nil {
			return fmt.Errorf("the certificate of %s: %w", p.name, err)
		}
	}
	return nil
}

// shared is what several parts are given.
type shared struct{ roots, requests, events, natsUsers, redisUsers, redisAuth string }

func renderShared(spec Spec, accepted []generation) (s shared, err error) {
	var roots, requests, events strings.Builder
	for _, g := range accepted {
		pem, err1 := g.read("ca.pem")
		request, err2 := g.read("queue.key")
		event, err3 := g.read("events.key")
		if err := errors.Join(err1, err2, err3); err != nil {
			return s, err
		}
		roots.WriteString(pem)
		requests.WriteString(request + "\n")
		events.WriteString("events " + event + "\n")
	}
	s = shared{roots: roots.String(), requests: requests.String(), events: events.String()}
	var errs [3]error
	s.natsUsers, errs[0] = natsUsers(spec, accepted)
	s.redisUsers, errs[1] = redisUsers(spec, accepted)
	s.redisAuth, errs[2] = redisAuth(accepted[0])
	return s, errors.Join(errs[:]...)
}

// filesOf returns the files of a part but for its certificate, by name.
func filesOf(p part, used generation, s shared) (map[string]string, error) {
	files := map[string]string{caFile: s.roots}
	var err1, err2 error
	if p.nats {
		files[seedFile], err1 = used.read(nkeyFile(p.name))
	}
	if p.redis != "" {
		files[passwordFile], err2 = used.read(redisFile(p.redis))
	}
	switch p.queueKeys {
	case allKeys:
		files[queueFile] = s.requests + s.events
	case eventKeys:
		files[queueFile] = s.events
	}
	switch p.name {
	case "nats":
		files[usersFile] = s.natsUsers
		// NATS takes this seed from its configuration alone.
		files[leafFile] = "nkey: " + strings.TrimSpace(files[seedFile]) + "\n"
		delete(files, seedFile)
	case "redis":
		files[aclFile], files[authFile] = s.redisUsers, s.redisAuth
	}
	return files, errors.Join(err1, err2)
}

// cockroachNames are what CockroachDB calls a certificate and its key in its
// --certs-dir.
var cockroachNames = map[string][2]string{"ledger": {"node.crt", "node.key"}, "root": {"client.root.crt", "client.root.key"}}

// renderLeaf makes a part's certificate unless the one there is still good.
func renderLeaf(dir string, p part, spec Spec, ca *authority, now time.Time, report *Report) error {
	folder := filepath.Join(dir, p.name)
	var hosts []string
	if p.hosts != nil {
		hosts = p.hosts(spec)
	}
	good, err := ca.stillGood(folder, p.user, hosts, now)
	if err != nil {
		return err
	}
	if !good {
		certPEM, keyPEM, err := ca.issue(p.user, hosts, spec.Lifetime, now)
		if err != nil {
			return err
		}
		// A process that reads between the two renames finds a pair that does not match,
		// refuses it and reads again.
		if err := errors.Join(write(filepath.Join(folder, keyFile), keyPEM), write(filepath.Join(folder, certFile), certPEM)); err != nil {
			return err
		}
		report.Written = append(report.Written, filepath.Join(p.name, certFile), filepath.Join(p.name, keyFile))
	}
	certPEM, err := os.ReadFile(filepath.Join(folder, certFile))
	if err != nil {
		return err
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return err
	}
	if report.Expires.IsZero() || cert.NotAfter.Before(report.Expires) {
		report.Expires = cert.NotAfter
	}
	return renderCockroach(folder, p.name)
}

// renderCockroach writes the same under the names that CockroachDB looks for.
func renderCockroach(folder, part string) error {
	names, ok := cockroachNames[part]
	if !ok {
		return nil
	}
	for from, to := range map[string]string{caFile: "ca.crt", certFile: names[0], keyFile: names[1]} {
		data, err := os.ReadFile(filepath.Join(folder, from))
		if err != nil {
			return err
		}
		if _, err := replace(filepath.Join(folder, to), data); err != nil {
			return err
		}
	}
	return nil
}
