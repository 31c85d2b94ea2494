package observe

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ticks is the unit of CPU time in /proc: USER_HZ, 100 on every Linux that Go runs on.
const ticks = 100

func cores() int { return runtime.NumCPU() }

// ownCPU returns the CPU seconds of this process.
func ownCPU() float64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// machineCPU returns the seconds that all cores have been busy and idle.
func machineCPU() (busy, idle float64) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(strings.TrimPrefix(line, "cpu ")) {
		v, err := strconv.ParseFloat(f, 64)
		switch {
		case err != nil, i > 7: // guest time is in user time already
		case i == 3 || i == 4: // idle, iowait
			idle += v / ticks
		default:
			busy += v / ticks
		}
	}
	return busy, idle
}

// sinceBoot is the time that the starts of processes are told in.
func sinceBoot() float64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return math.Inf(1)
	}
	return float64(t.Nano()) / 1e9
}

// A forest is processes with all their descendants.
type forest struct {
	roots   []int
	known   map[int]process
	scanned time.Time // when the known were found; zero: they are not
}

// rescan is how old the list of processes may be while none of them ends and none is
// seen to have started another. To find all takes some milliseconds, for /proc has
// everybody's.
const rescan = 10 * time.Second

func (f *forest) follow(pid int) {
	f.roots = append(f.roots, pid)
	f.forget()
}

// forget has the next look find all processes anew.
func (f *forest) forget() { f.scanned = time.Time{} }

// look returns the processes as they are now.
func (f *forest) look(now time.Time) []process {
	switch {
	case len(f.roots) == 0:
		return nil
	case now.Sub(f.scanned) >= rescan:
		f.scan(now)
	default:
		for pid, before := range f.known {
			p, ok := readProcess(fmt.Sprintf("/proc/%d/stat", pid))
			if !ok || p.started != before.started {
				delete(f.known, pid)
				f.forget()
				continue
			}
			p.name = before.name
			f.known[pid] = p
		}
		if f.grown() {
			f.scan(now)
		}
	}
	found := slices.Collect(maps.Values(f.known))
	for i := range found {
		found[i].rss, found[i].shared = memory(found[i].pid)
	}
	return found
}

// grown reports whether a known process has a child that is not known, such as a new
// backend of PostgreSQL. It sees the children of first threads only, as a program of one
// thread has them, and none where the kernel does not list them.
func (f *forest) grown() bool {
	for pid := range f.known {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			continue
		}
		for _, child := range strings.Fields(string(data)) {
			n, err := strconv.Atoi(child)
			if _, known := f.known[n]; err == nil && !known {
				return true
			}
		}
	}
	return false
}

// scan finds the processes, each once.
func (f *forest) scan(now time.Time) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return
	}
	all, children := map[int]process{}, map[int][]int{}
	for _, path := range stats {
		if p, ok := readProcess(path); ok {
			all[p.pid] = p
			children[p.parent] = append(children[p.parent], p.pid)
		}
	}
	found := map[int]process{}
	for queue := slices.Clone(f.roots); len(queue) > 0; queue = queue[1:] {
		p, ok := all[queue[0]]
		if !ok {
			continue
		}
		delete(all, p.pid)
		p.name = nameOf(p)
		found[p.pid] = p
		queue = append(queue, children[p.pid]...)
	}
	f.known, f.scanned = found, now
}

// readProcess reads /proc/<pid>/stat (proc(5)). CPU is without that of children that have
// ended: each has counted for itself.
func readProcess(path string) (process, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return process{}, false // it has ended
	}
	begin, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')') // the name may hold spaces
	if begin < 0 || end < begin {
		return process{}, false
	}
	f := strings.Fields(string(data[end+1:]))
	if len(f) < 22 {
		return process{}, false
	}
	number := func(field int) float64 { v, _ := strconv.ParseFloat(f[field-3], 64); return v }
	pid, err := strconv.Atoi(strings.TrimSpace(string(data[:begin])))
	return process{
		pid: pid, parent: int(number(4)), name: string(data[begin+1 : end]),
		cpu: (number(14) + number(15)) / ticks, started: number(22) / ticks,
	}, err == nil
}

// memory returns the resident and the shared memory of a process (/proc/<pid>/statm).
func memory(pid int) (resident, shared float64) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)) // without it: it has ended
	f := append(strings.Fields(string(data)), "", "", "")
	pages := func(s string) float64 { v, _ := strconv.ParseFloat(s, 64); return v * float64(os.Getpagesize()) }
	return pages(f[1]), pages(f[2])
}

// nameOf is what a report calls a process: a certmill by its role, others by their
// program.
func nameOf(p process) string {
	if p.name != "certmill" {
		return p.name
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	if err != nil {
		return p.name
	}
	var words []string
	for _, a := range strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")[1:] {
		if strings.HasPrefix(a, "-") {
			break
		}
		words = append(words, a)
	}
	if len(words) == 0 {
		return p.name
	}
	return strings.Join(words, " ")
}

// Parent returns the process that started pid.
func Parent(pid int) (int, error) {
	p, ok := readProcess(fmt.Sprintf("/proc/%d/stat", pid))
	if !ok {
		return 0, fmt.Errorf("process %d does not run", pid)
	}
	return p.parent, nil
}
