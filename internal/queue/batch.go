package queue

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// Numbers of the fields that a gateway sets after it has encoded a request.
const (
	fieldRequests    = 1  // SignBatch.requests
	fieldIssuer      = 5  // SignRequest.issuer
	fieldDeadline    = 17 // SignRequest.deadline_unix_ms
	fieldSeen        = 18 // SignRequest.seen
	fieldTraceparent = 19 // SignRequest.traceparent

	// setRoom is what Set* need at most, without the traceparent's 55 characters.
	setRoom = 16
)

// Request is an encoded SignRequest. A gateway encodes each request once, in the
// goroutine of its caller, and puts batches together from the encodings; what it
// learns later is appended, since of several occurrences of a protobuf field the
// last one counts.
type Request []byte

// EncodeRequest encodes r. It keeps no reference to r.
func EncodeRequest(r *queuev1.SignRequest) (Request, error) {
	out, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 0, proto.Size(r)+setRoom), r)
	if err != nil {
		return nil, fmt.Errorf("encoding a request: %w", err)
	}
	return out, nil
}

// SetDeadline returns the request with another deadline, in Unix milliseconds.
func (r Request) SetDeadline(unixMilli int64) Request {
	return protowire.AppendVarint(protowire.AppendTag(r, fieldDeadline, protowire.VarintType), uint64(unixMilli))
}

// SetIssuer returns the request for another issuer.
func (r Request) SetIssuer(name string) Request {
	return protowire.AppendString(protowire.AppendTag(r, fieldIssuer, protowire.BytesType), name)
}

// SetSeen returns the request marked as one that an earlier try may have answered.
func (r Request) SetSeen() Request {
	return protowire.AppendVarint(protowire.AppendTag(r, fieldSeen, protowire.VarintType), 1)
}

// SetTraceparent returns the request with a W3C trace context.
func (r Request) SetTraceparent(s string) Request {
	return protowire.AppendString(protowire.AppendTag(r, fieldTraceparent, protowire.BytesType), s)
}

// BatchSize is what the request takes in a batch, in bytes.
func (r Request) BatchSize() int {
	return protowire.SizeTag(fieldRequests) + protowire.SizeBytes(len(r))
}

// SealBatch puts the requests into one SignBatch and seals it for subject.
func (k *Keys) SealBatch(subject string, requests []Request) ([]byte, error) {
	n := headerSize
	for _, r := range requests {
		n += r.BatchSize()
	}
	if n > MaxMessageBytes {
		return nil, fmt.Errorf("a batch for %s has %d bytes, more than %d", subject, n, MaxMessageBytes)
	}
	out := make([]byte, headerSize, n)
	for _, r := range requests {
		out = protowire.AppendBytes(protowire.AppendTag(out, fieldRequests, protowire.BytesType), r)
	}
	if err := k.sealInPlace(subject, out); err != nil {
		return nil, err
	}
	return out, nil
}

// MaxRequestBytes is what one encoded request may have so that it fits a message.
const MaxRequestBytes = MaxMessageBytes - headerSize - 128
