package loadtest

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/certmill/certmill/loadtest/check"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/target"
)

// scripted answers each request of a batch by its results, a single one by the first.
type scripted []target.Result

func (s scripted) Do(context.Context, *target.Request) (target.Answer, error) {
	return s[0].Answer, s[0].Err
}

func (s scripted) DoBatch(context.Context, []*target.Request) ([]target.Result, error) { return s, nil }
func (s scripted) Close() error                                                        { return nil }

func TestAnswersAreLookedAtOnlyWhenTheirTimeIsTaken(t *testing.T) {
	pool, err := material.Make(t.Context(), material.Config{CSRs: 4, Name: "w{n}.load.test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	results := scripted{
		{Answer: target.Answer{PEM: []byte("hello")}},
		{Err: &target.Failure{Kind: "denied", Detail: "not this name"}},
		{Err: &target.Failure{Kind: engine.KindTimeout, Detail: "too slow", Late: true}},
		{Answer: target.Answer{PEM: []byte("hello again")}},
	}
	for batch, seen := range map[int]int64{1: 1, 4: 2} {
		saver, err := newSaver(filepath.Join(t.TempDir(), "saved.pem"), 10)
		if err != nil {
			t.Fatal(err)
		}
		w := &work{target: results, batch: batch, csrs: pool, checker: check.New(check.Config{}), saver: saver}
		out := w.do(t.Context(), engine.Call{Deadline: time.Now().Add(time.Second)})
		if c := w.checker.Summary(); c.Seen != 0 || saver.left.Load() != 10 || int64(out.OK) != seen {
			t.Errorf("batch of %d: %d answers, %d looked at within the measured time", batch, out.OK, c.Seen)
		}
		out.Then()
		if c := w.checker.Close(); c.Seen != seen || c.Wrong != seen || saver.left.Load() != 10-seen {
			t.Errorf("batch of %d: %+v", batch, c)
		}
		if err := saver.close(); err != nil {
			t.Error(err)
		}
		if batch == 1 {
			continue
		}
		want := []engine.Fault{{Units: 1, Kind: "denied", Detail: "not this name"}, {Units: 1, Kind: engine.KindTimeout, Detail: "too slow", Late: true}}
		if len(out.More) != 2 || out.More[0] != want[0] || out.More[1] != want[1] || out.Failed != 0 {
			t.Errorf("failures %+v", out)
		}
	}
}
