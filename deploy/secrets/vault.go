package secrets

import (
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nkeys"
)

// Phase is how far a rotation is.
type Phase string

// The phases, in their order; after Stable a rotation may begin again.
const (
	// Stable: one generation is used and accepted.
	Stable Phase = "stable"
	// Prepared: the next one is accepted beside it.
	Prepared Phase = "prepared"
	// Activated: the next one is used, the one before still accepted.
	Activated Phase = "activated"
)

// state is what the vault remembers beside the secrets.
type state struct {
	// Generation is the one used; in Prepared the next is Generation+1, in Activated
	// the one before is Generation-1.
	Generation int   `json:"generation"`
	Phase      Phase `json:"phase"`
	Spec       Spec  `json:"spec"`
}

// accepted returns the numbers of the generations that servers accept, the used first.
func (s state) accepted() []int {
	switch s.Phase {
	case Prepared:
		return []int{s.Generation, s.Generation + 1}
	case Activated:
		return []int{s.Generation, s.Generation - 1}
	default:
		return []int{s.Generation}
	}
}

// vault is the folder with what all secrets are made from.
type vault struct{ path string }

func (v vault) stateFile() string { return filepath.Join(v.path, "state.json") }

// readState returns generation 1, stable, where nothing was ever made.
func (v vault) readState() (state, error) {
	s := state{Generation: 1, Phase: Stable, Spec: DefaultSpec()}
	data, err := os.ReadFile(v.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", v.stateFile(), err)
	}
	if s.Generation < 1 || (s.Phase != Stable && s.Phase != Prepared && s.Phase != Activated) {
		return s, fmt.Errorf("%s is damaged: generation %d, phase %q", v.stateFile(), s.Generation, s.Phase)
	}
	return s, nil
}

func (v vault) writeState(s state) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = replace(v.stateFile(), append(data, '\n'))
	return err
}

// generation is one set of secrets in the vault.
type generation struct {
	number int
	path   string
}

// ensure makes what the generation lacks, and returns it.
func (v vault) ensure(number int, spec Spec, now time.Time) (generation, error) {
	g := generation{number, filepath.Join(v.path, strconv.Itoa(number))}
	if err := os.MkdirAll(g.path, 0o700); err != nil {
		return g, err
	}
	if _, err := os.Stat(g.file("ca.pem")); errors.Is(err, fs.ErrNotExist) {
		cert, key, err := newAuthority(number, spec.CALifetime, now)
		if err != nil {
			return g, fmt.Errorf("making the internal CA: %w", err)
		}
		// The key first: a certificate says that its key is there.
		if err := errors.Join(write(g.file("ca.key"), key), write(g.file("ca.pem"), cert)); err != nil {
			return g, err
		}
	}
	fresh := map[string]func() (string, error){"queue.key": random(32), "events.key": random(32)}
	for _, user := range []string{"presigner", "responder", "viewer", "replica", "sentinel"} {
		fresh[redisFile(user)] = random(32)
	}
	for _, p := range parts {
		if p.nats {
			fresh[nkeyFile(p.name)] = newNKey
		}
	}
	for name, make := range fresh {
		if _, err := os.Stat(g.file(name)); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return g, err
			}
			continue
		}
		secret, err := make()
		if err != nil {
			return g, err
		}
		if err := write(g.file(name), []byte(secret)); err != nil {
			return g, err
		}
	}
	return g, nil
}

// tokenPINs are the PINs of a SoftHSM token, made once and not rotated: a token's PIN is
// changed in the token. For another HSM put its PIN into the vault's file.
var tokenPINs = []string{pinFile, soPINFile}

// ensurePINs makes the token's PINs where they are missing.
func (v vault) ensurePINs() error {
	for _, name := range tokenPINs {
		path := filepath.Join(v.path, name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return err
			}
			continue
		}
		pin, err := random(16)()
		if err != nil {
			return err
		}
		if err := write(path, []byte(pin)); err != nil {
			return err
		}
	}
	return nil
}

// forget removes the secrets of generations that are not accepted: those retired, and
// those that a run made before it died.
func (v vault) forget(accepted []generation) error {
	entries, err := os.ReadDir(v.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil || slices.ContainsFunc(accepted, func(g generation) bool { return g.number == number }) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(v.path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (g generation) file(name string) string { return filepath.Join(g.path, name) }

func (g generation) read(name string) (string, error) {
	data, err := os.ReadFile(g.file(name))
	return string(data), err
}

// authority reads the generation's internal CA.
func (g generation) authority() (*authority, error) {
	certPEM, err := os.ReadFile(g.file("ca.pem"))
	if err != nil {
		return nil, err
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.file("ca.pem"), err)
	}
	var key *ecdsa.PrivateKey
	if key, err = readKey(g.file("ca.key")); err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: certPEM}, nil
}

// nkeyFile is where the vault keeps the seed of a part's user of NATS.
func nkeyFile(part string) string { return "nats-" + part + ".nk" }

// nkeyPublic returns the public key of a part's user.
func (g generation) nkeyPublic(part string) (string, error) {
	seed, err := g.read(nkeyFile(part))
	if err != nil {
		return "", err
	}
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return "", fmt.Errorf("%s: %w", g.file(nkeyFile(part)), err)
	}
	return pair.PublicKey()
}

func newNKey() (string, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return "", err
	}
	seed, err := pair.Seed()
	return string(seed), err
}

// random returns a maker of n random octets as hexadecimal digits.
func random(n int) func() (string, error) {
	return func() (string, error) {
		b := make([]byte, n)
		if _, err := rand.Read(b); err != nil {
			return "", err
		}
		return hex.EncodeToString(b), nil
	}
}
