package roles

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// trace notes what happens in which order.
type trace struct {
	mu     sync.Mutex
	events []string
}

func (t *trace) add(e string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
}

// step runs until its context ends, and takes a while to stop.
func (t *trace) step(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(time.Second) // of the bubble's clock
		t.add(name)
		return nil
	}
}

func TestStepsStopFromTheLastToTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trace
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := inOrder(ctx, tr.step("ground"), tr.step("middle"), tr.step("top")); err != nil {
			t.Fatal(err)
		}
		if want := []string{"top", "middle", "ground"}; !slices.Equal(tr.events, want) {
			t.Errorf("stopped in the order %v, want %v", tr.events, want)
		}
	})
}

func TestAStepThatFailsStopsTheOthersInOrder(t *testing.T) {
	broken := errors.New("broken")
	for at, want := range [][]string{{"top", "middle"}, {"top", "ground"}, {"middle", "ground"}} {
		synctest.Test(t, func(t *testing.T) {
			var tr trace
			steps := []func(context.Context) error{tr.step("ground"), tr.step("middle"), tr.step("top")}
			steps[at] = func(context.Context) error { return broken }
			if err := inOrder(t.Context(), steps...); !errors.Is(err, broken) {
				t.Errorf("the error is %v", err)
			}
			if !slices.Equal(tr.events, want) {
				t.Errorf("with step %d broken: stopped in the order %v, want %v", at, tr.events, want)
			}
		})
	}
}
