package local

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// writebackEvery is how often Writeback has written what has gathered.
const writebackEvery = 500 * time.Millisecond

// Writeback has the kernel write, twice a second until ctx ends, what was written to
// files below the folders. By itself it waits for half a minute and then writes all of it
// at once, at the disk's full speed, and whoever commits meanwhile waits behind it:
// PostgreSQL leaves all pages by which its tables grow to the kernel. Nothing is made
// durable here: that stays with who writes the files.
//
// Folders and files that cannot be read are left out.
func Writeback(ctx context.Context, folders ...string) {
	tick := time.NewTicker(writebackEvery)
	defer tick.Stop()
	for last := (time.Time{}); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		since := last.Add(-writebackEvery) // the files' clock is coarser than ours
		last = time.Now()
		for _, folder := range folders {
			_ = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
				if err != nil || !entry.Type().IsRegular() {
					return nil
				}
				if info, err := entry.Info(); err == nil && info.ModTime().After(since) {
					_ = startWriteback(path)
				}
				return ctx.Err()
			})
		}
	}
}

// startWriteback is sync_file_range(2) with SYNC_FILE_RANGE_WRITE alone: it waits at most
// for room in the disk's queue, not for the disk, and takes no error of an earlier write
// from those who sync the file. What is a link or a pipe by now is not waited for either.
func startWriteback(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE), unix.Close(fd))
}

// room returns how many octets of the disk that holds path may still be written.
func room(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}
