package local

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
)

// Dir is a data directory that one process holds at a time. It is safe for
// concurrent use.
type Dir struct {
	path string
	lock *os.File

	mu    sync.Mutex
	ports map[string]int // as in ports.json
	held  map[string]net.Listener
}

// ErrLocked says that another process works on the data directory.
var ErrLocked = errors.New("another process uses this data directory")

// OpenDir makes the directory where it does not exist and locks it. It fails with
// ErrLocked while another process holds it; the lock goes with the process.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// As root, PostgreSQL's own user must be able to pass through, not to look.
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	d := &Dir{path: path, lock: lock, ports: map[string]int{}, held: map[string]net.Listener{}}
	if data, err := os.ReadFile(d.Path("ports.json")); err == nil {
		// A file that cannot be read costs nothing but other port numbers.
		_ = json.Unmarshal(data, &d.ports)
	}
	return d, nil
}

// Close gives the directory and the ports that are still held free.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.held {
		_ = l.Close()
	}
	clear(d.held)
	return d.lock.Close()
}

// Path joins names to the directory's absolute path.
func (d *Dir) Path(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}

// Log returns the path of a log file, making its folder.
func (d *Dir) Log(name string) (string, error) {
	if err := os.MkdirAll(d.Path("log"), 0o700); err != nil {
		return "", err
	}
	return d.Path("log", name+".log"), nil
}

// anyPort leaves the choice to the system.
const anyPort = -1

// Port returns a free TCP port on loopback for a name: the one of the last start,
// else preferred (0: any), else any. It is remembered for the next start, and held
// until Release, so that nobody else is given it before the server starts.
func (d *Dir) Port(name string, preferred int) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// The system may choose one that stands for another name whose server is not up.
	for _, port := range append([]int{d.ports[name], preferred}, slices.Repeat([]int{anyPort}, 32)...) {
		if port == 0 {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(max(port, 0))))
		if err != nil {
			continue
		}
		got := l.Addr().(*net.TCPAddr).Port
		if d.taken(name, got) {
			_ = l.Close()
			continue
		}
		d.ports[name], d.held[name] = got, l
		data, err := json.MarshalIndent(d.ports, "", "  ")
		if err != nil {
			return 0, err
		}
		return got, os.WriteFile(d.Path("ports.json"), append(data, '\n'), 0o600)
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1 for %s", name)
}

// Release gives the port of a name to the server that is about to start.
func (d *Dir) Release(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.held[name]; l != nil {
		_ = l.Close()
		delete(d.held, name)
	}
}

// taken reports whether the port was given to another name.
func (d *Dir) taken(name string, port int) bool {
	for other, p := range d.ports {
		if other != name && p == port {
			return true
		}
	}
	return false
}

// Secret returns the content of a file of the directory, and makes it first, with
// mode 0600 and 32 random hexadecimal digits, where it does not exist.
func (d *Dir) Secret(name string) (path, secret string, err error) {
	return d.SecretFrom(name, func() (string, error) {
		var b [16]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", err
		}
		return hex.EncodeToString(b[:]), nil
	})
}

// SecretFrom is Secret with what fresh makes.
func (d *Dir) SecretFrom(name string, fresh func() (string, error)) (path, secret string, err error) {
	path = d.Path(name)
	data, err := os.ReadFile(path)
	if err == nil {
		return path, string(data), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	if secret, err = fresh(); err != nil {
		return "", "", err
	}
	// Written aside and renamed: a start that dies here leaves no half secret behind.
	if err := os.WriteFile(path+".new", []byte(secret), 0o600); err != nil {
		return "", "", err
	}
	return path, secret, os.Rename(path+".new", path)
}
