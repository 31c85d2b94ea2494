package queue_test

import (
	"context"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/testenv"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestReportsAreHeardUnlessTheyAreForged(t *testing.T) {
	ctx := bounded(t)
	conn := connect(t, connection(t, testenv.NATS(t)))
	if err := conn.Wait(ctx); err != nil {
		t.Fatal(err)
	}

	hearing, stop := context.WithCancel(ctx)
	heard, forged, done := make(chan string, 1), make(chan struct{}, 8), make(chan error, 1)
	go func() {
		done <- conn.HearReports(hearing, func(m *certmillv1.RoleStatus) {
			select {
			case heard <- m.GetName():
			default:
			}
		}, func() { forged <- struct{}{} })
	}()
	report := &certmillv1.RoleStatus{Role: "signer", Name: "s1", Instance: "1", Reported: timestamppb.Now()}
	// The subscription may come later than the first report.
	for first := ""; first == ""; {
		if err := conn.Report(ctx, report); err != nil {
			t.Fatal(err)
		}
		if err := conn.NATS.FlushWithContext(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case first = <-heard:
		case <-ctx.Done():
			t.Fatal("no report is heard")
		default:
		}
	}
	sealed, err := keys(t, keyB).Seal(queue.PresenceSubject("signer"), report)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]byte{sealed, []byte("x"), nil} {
		if err := conn.NATS.Publish(queue.PresenceSubject("signer"), c); err != nil {
			t.Fatal(err)
		}
		<-forged
	}
	// A report of one role on the subject of another.
	if err := conn.Publish(queue.PresenceSubject("gateway"), report); err != nil {
		t.Fatal(err)
	}
	<-forged
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
