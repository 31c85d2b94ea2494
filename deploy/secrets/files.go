package secrets

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// The files that a part's folder may hold.
const (
	caFile       = "ca.pem"         // roots of the internal PKI
	certFile     = "tls.pem"        // its certificate, a client's and where it serves a server's
	keyFile      = "tls.key"        // and its key
	seedFile     = "nats.nk"        // the seed of its user of NATS
	queueFile    = "queue.key"      // the queue's keys
	passwordFile = "redis.password" // of its user of Redis
	pinFile      = "token.pin"      // the HSM token's user PIN
	soPINFile    = "token.so-pin"   // its security officer's PIN
	usersFile    = "users.conf"     // of NATS: its users and their rights
	leafFile     = "leaf.conf"      // of NATS: by which user it connects to another region's
	aclFile      = "users.acl"      // of Redis: its users and their rights
	authFile     = "auth.conf"      // of Redis: how a replica proves itself
)

// write replaces a file at once, with mode 0600 from the first moment: a run that is
// killed leaves no half secret behind.
func write(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing is there once it has been renamed
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// replace writes a file unless it holds data and is nobody else's to read, and
// reports whether it did.
func replace(path string, data []byte) (bool, error) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm() == 0o600 {
		old, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		if bytes.Equal(old, data) {
			return false, nil
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, write(path, data)
}
