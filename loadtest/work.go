package loadtest

import (
	"bufio"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/certmill/certmill/loadtest/check"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/target"
)

// work turns a call of the engine into requests to the target, and hands answers to
// the checks. It is for one run and safe for concurrent use.
type work struct {
	target   target.Target
	batch    int // units of a call
	runID    string
	csrs     *material.Pool
	statuses []*target.StatusRequest
	checker  *check.Checker
	saver    *saver
	asked    atomic.Int64
}

// request makes the n-th request of the run.
func (w *work) request(n int64, call engine.Call) *target.Request {
	r := &target.Request{Deadline: call.Deadline}
	if w.statuses != nil {
		r.Status = w.statuses[scatter(n)%uint64(len(w.statuses))]
		return r
	}
	r.ID = w.runID + "-" + strconv.FormatInt(n, 10)
	r.CSR = w.csrs.Get(n)
	return r
}

// scatter spreads consecutive numbers over all of them (the finalizer of SplitMix64),
// so that serials are asked for in no order that a cache could like.
func scatter(n int64) uint64 {
	z := uint64(n) + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// do is the engine's Op.
func (w *work) do(ctx context.Context, call engine.Call) engine.Outcome {
	if b, ok := w.target.(target.Batcher); ok && w.batch > 1 {
		return w.doBatch(ctx, b, call)
	}
	w.asked.Add(1)
	r := w.request(call.Seq, call)
	a, err := w.target.Do(ctx, r)
	if err != nil {
		return failed(1, err)
	}
	return w.answered(r, a)
}

// answered leaves the look at the answer to when its time is taken.
func (w *work) answered(r *target.Request, a target.Answer) engine.Outcome {
	return engine.Outcome{OK: 1, Phases: a.Phases, Then: func() { w.look(r, a) }}
}

func (w *work) look(r *target.Request, a target.Answer) {
	w.checker.Offer(r, a)
	w.saver.offer(a)
}

func (w *work) doBatch(ctx context.Context, b target.Batcher, call engine.Call) engine.Outcome {
	rs := make([]*target.Request, w.batch)
	for i := range rs {
		rs[i] = w.request(call.Seq*int64(w.batch)+int64(i), call)
	}
	w.asked.Add(int64(w.batch))
	results, err := b.DoBatch(ctx, rs)
	if err != nil {
		return failed(w.batch, err)
	}
	out := engine.Outcome{Then: func() {
		for i, res := range results {
			if res.Err == nil {
				w.look(rs[i], res.Answer)
			}
		}
	}}
	for _, res := range results {
		if res.Err == nil {
			out.OK++
			continue
		}
		f := target.Classify(res.Err)
		out.More = append(out.More, engine.Fault{Units: 1, Kind: f.Kind, Detail: f.Detail, Late: f.Late})
	}
	return out
}

func failed(units int, err error) engine.Outcome {
	f := target.Classify(err)
	return engine.Outcome{Failed: units, Kind: f.Kind, Detail: f.Detail, Late: f.Late}
}

// saver writes the first certificates to a file, with their issuers once. A nil saver
// saves nothing.
type saver struct {
	left atomic.Int64

	mu      sync.Mutex
	file    *os.File
	out     *bufio.Writer
	issuers map[string]bool
	err     error
}

func newSaver(path string, most int) (*saver, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("--save: %w", err)
	}
	s := &saver{file: f, out: bufio.NewWriterSize(f, 1<<20), issuers: map[string]bool{}}
	s.left.Store(int64(most))
	return s, nil
}

func (s *saver) offer(a target.Answer) {
	if s == nil || s.left.Load() <= 0 || s.left.Add(-1) < 0 {
		return
	}
	chain := a.DER
	for rest := a.PEM; len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		chain = append(chain, block.Bytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, der := range chain {
		if i > 0 && s.issuers[string(der)] {
			continue
		}
		if i > 0 {
			s.issuers[string(der)] = true
		}
		s.err = errors.Join(s.err, pem.Encode(s.out, &pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
}

func (s *saver) close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.err, s.out.Flush(), s.file.Close())
}
