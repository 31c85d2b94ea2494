package local

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel would leave the file for half a minute.
func TestWritebackWritesWhatGathers(t *testing.T) {
	folder := t.TempDir()
	old := write(t, filepath.Join(folder, "old"))
	if dirty(t, old) == 0 {
		unable(t, "this file system has no pages to write")
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Writeback(ctx, filepath.Join(folder, "missing"), folder)
	}()
	if err := os.Mkdir(filepath.Join(folder, "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	files := []*os.File{old, write(t, filepath.Join(folder, "base", "new"))}
	until := time.Now().Add(10 * time.Second)
	for _, f := range files {
		for dirty(t, f) > 0 {
			if time.Now().After(until) {
				t.Fatalf("%d pages of %s are still to be written", dirty(t, f), f.Name())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	stop()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func write(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	return f
}

// dirty returns how many pages of a file the kernel has still to write.
func dirty(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var pages unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &pages, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		unable(t, "cachestat(2): "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages.Dirty
}

// unable skips the test where it cannot be done, and fails it in CI.
func unable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
