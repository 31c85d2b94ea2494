package queue_test

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// FuzzOpen: nothing opens but what was sealed, byte for byte.
func FuzzOpen(f *testing.F) {
	const subject = "certmill.sign.issuing.first"
	k := keys(f, keyA)
	sealed, err := k.Seal(subject, &queuev1.SignBatch{Requests: []*queuev1.SignRequest{request(1)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(subject, sealed)
	f.Add("certmill.sign.issuing.batch", sealed)
	f.Add(subject, sealed[:37])
	f.Add(subject, []byte{1})
	f.Fuzz(func(t *testing.T, s string, data []byte) {
		var b queuev1.SignBatch
		err := k.Open(s, data, &b)
		if s == subject && bytes.Equal(data, sealed) {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if !errors.Is(err, queue.ErrForged) {
			t.Fatalf("opened or decoded: %v", err)
		}
	})
}

// FuzzSignBatch: what a holder of the key may send is refused or has the shape that
// the worker relies on, and never panics.
func FuzzSignBatch(f *testing.F) {
	for _, b := range []*queuev1.SignBatch{
		{Requests: []*queuev1.SignRequest{request(1)}},
		{Requests: []*queuev1.SignRequest{request(1), {}, request(2)}},
		{},
	} {
		data, err := proto.Marshal(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var b queuev1.SignBatch
		if proto.Unmarshal(data, &b) != nil || queue.CheckBatch(&b) != nil {
			return
		}
		for _, r := range b.Requests {
			if queue.CheckRequest(r, "issuing") != nil {
				continue
			}
			if len(r.RequestKey) != queue.RequestKeySize || len(r.CsrSha256) != queue.DigestSize || r.GetCaller().GetId() == "" {
				t.Fatalf("%v passes", r)
			}
			again, err := queue.EncodeRequest(r)
			if err != nil {
				t.Fatal(err)
			}
			var back queuev1.SignRequest
			if err := proto.Unmarshal(again.SetSeen(), &back); err != nil || !back.Seen {
				t.Fatalf("%v does not come back: %v", r, err)
			}
		}
	})
}
