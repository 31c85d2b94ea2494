package observe

import "math"

// process is what one look finds of a process.
type process struct {
	pid, parent int
	name        string
	cpu         float64
	rss, shared float64 // shared is the part of rss that others may have too
	started     float64 // seconds after the machine's start: tells two apart that had one pid
}

// identity tells a process from all others: by its pid, or by the role that told of it
// and is then below 0, and by its start, 0 where that is not known.
type identity struct {
	id      int
	started float64
}

// A ledger adds up the CPU that processes are known to have used, by name. A process
// counts by what it used between two looks, so that sums never fall when one ends; what
// it used after the last look that found it is not known and does not count. Those that
// ended are kept: they are few, and one that could not be read may be there again.
type ledger struct {
	seen map[identity]float64
	used map[string]float64
}

// enter takes in the CPU time of a process. One that is seen for the first time counts
// from its start if it is fresh, that is, began after the first look, else from now on.
func (l *ledger) enter(name string, who identity, cpu float64, fresh bool) {
	if l.seen == nil {
		l.seen, l.used = map[identity]float64{}, map[string]float64{}
	}
	before, known := l.seen[who]
	switch {
	case !known && !fresh:
		before = cpu
	case cpu < before && who.started == 0: // it has started anew and does not say so
		before = 0
	}
	l.seen[who] = cpu
	l.used[name] += math.Max(0, cpu-before)
}

// moment is when a look began, in seconds: after the machine's start, and in Unix time.
type moment struct{ boot, unix float64 }

// roleStep is the step in which a role tells the start of its process: it adds it to the
// whole second of the machine's start.
const roleStep = 1.0
