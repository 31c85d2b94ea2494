package signer

import (
	"context"
	"crypto"
	"fmt"
	"strconv"
	"testing"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

type idle struct{}

func (idle) Expect(int) {}

func (idle) prepare(*profile.Request, uint32) (prepared, error) { return idle{}, nil }

func (idle) Serial() serial.Number { return serial.Number{1} }

func (idle) Sign(context.Context, ContextSigner) (ledger.Certificate, error) {
	return ledger.Certificate{Serial: serial.Number{1}, DER: idleDER}, nil
}

func (idle) Commit(_ context.Context, e ledger.Entry) (ledger.Outcome, error) {
	return ledger.Outcome{Certificate: e.Certificate}, nil
}

var idleDER = make([]byte, 600)

// BenchmarkWorker measures the worker alone, broker included: pull, envelope, fan-out,
// reply and acknowledgement, with a signature and a commit that cost nothing.
func BenchmarkWorker(b *testing.B) {
	for _, size := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			w := newWorld(b)
			w.startWith(func(p *parts, _ *[]Token) {
				p.committer = idle{}
				p.newPreparer = func(ledger.Issuer, crypto.PublicKey) (preparer, error) { return idle{}, nil }
			})
			subject := queue.SignSubject("issuing", queue.First)
			var messages [][]byte
			for i := range 16 {
				var batch queuev1.SignBatch
				for j := range size {
					batch.Requests = append(batch.Requests, w.request(strconv.Itoa(i)+"-"+strconv.Itoa(j)))
				}
				data, err := w.conn.Keys.Seal(subject, &batch)
				if err != nil {
					b.Fatal(err)
				}
				messages = append(messages, data)
			}
			b.ReportAllocs()
			b.ResetTimer()
			// Four messages are out at any time.
			out, done := 0, 0
			for done < b.N {
				for out < 4*size {
					w.publish(subject, messages[out/size%len(messages)], nil)
					out += size
				}
				<-w.results
				done++
				out--
			}
			b.StopTimer()
			for ; out > 0; out-- {
				<-w.results
			}
		})
	}
}

// BenchmarkIssue measures the signer on the real token and the real ledger: messages
// of 8 requests, 64 requests outstanding.
func BenchmarkIssue(b *testing.B) {
	const size, outstanding = 8, 64
	w := newWorld(b)
	w.start()
	subject := queue.SignSubject("issuing", queue.First)
	next := 0
	send := func() {
		batch := &queuev1.SignBatch{}
		for range size {
			batch.Requests = append(batch.Requests, w.request("b"+strconv.Itoa(next)))
			next++
		}
		data, err := w.conn.Keys.Seal(subject, batch)
		if err != nil {
			b.Fatal(err)
		}
		w.publish(subject, data, nil)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for out, done := 0, 0; done < b.N; done++ {
		for ; out+size <= outstanding; out += size {
			send()
		}
		if r := <-w.results; r.Failure != nil {
			b.Fatal(r.Failure)
		}
		out--
	}
	b.StopTimer()
	w.drained()
}
