package signer

import (
	"runtime"
	"sync"
)

// A batcher hands what has gathered to flush, from one goroutine at a time that lives
// only while there is something. Nothing waits for company: while one group is being
// flushed, the next gathers. It is safe for concurrent use.
type batcher[T any] struct {
	flush func([]T)
	size  int // of a group at most
	bound int // of what may gather; 0: bounded by its users
	owner *sync.WaitGroup

	mu      sync.Mutex
	waiting []T
	running bool
}

// add takes v and reports true, or false where the bound is reached.
func (b *batcher[T]) add(v T) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bound > 0 && len(b.waiting) >= b.bound {
		return false
	}
	b.waiting = append(b.waiting, v)
	if !b.running {
		b.running = true
		b.owner.Add(1)
		go b.run()
	}
	return true
}

func (b *batcher[T]) run() {
	defer b.owner.Done()
	for {
		// One commit makes many goroutines ready at once: let them all add first.
		runtime.Gosched()
		group := b.next()
		if group == nil {
			return
		}
		b.flush(group)
	}
}

func (b *batcher[T]) next() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.waiting), b.size)
	if n == 0 {
		b.running = false
		return nil
	}
	group := b.waiting[:n:n]
	if b.waiting = b.waiting[n:]; len(b.waiting) == 0 {
		b.waiting = nil
	}
	return group
}

// idle reports whether there is nothing to do.
func (b *batcher[T]) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.running
}
