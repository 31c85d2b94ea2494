package config

import (
	"fmt"
	"os"
	"strings"
)

// maxSecret bounds a secret file, in bytes.
const maxSecret = 64 << 10

// ReadSecret returns the content of a secret file without the white space around it.
// It refuses a file that every user of the machine may read or write, one that is
// empty and one beyond 64 KiB. The content is in no error.
func ReadSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("%s holds a secret and is open to every user (mode %04o): chmod o= %s", path, info.Mode().Perm(), path)
	}
	data, err := readBounded(path, maxSecret)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" {
		return "", fmt.Errorf("%s is to hold a secret and is empty", path)
	}
	return secret, nil
}
