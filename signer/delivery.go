package signer

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// A delivery is one message at work. It is acknowledged when each of its requests has
// an outcome and the replies are written; a signer that dies before leaves it to the
// next, which finds in the ledger what was committed.
type delivery struct {
	line   *line
	msg    *nats.Msg
	batch  queuev1.SignBatch
	reply  string // "" where nobody waits
	queued time.Time
	tries  uint64 // times handed out, this one included
	shown  time.Time

	ctx       context.Context // ends with the batch's latest deadline
	commitCtx context.Context // ends CommitTimeout later
	end       context.CancelFunc
	endCommit context.CancelFunc
	left      atomic.Int32
	again     atomic.Bool // something in it is to be tried again
}

// What a signer says of a message (JetStream's acknowledgement protocol).
var (
	ackDone     = []byte("+ACK")
	ackTerm     = []byte("+TERM")
	ackProgress = []byte("+WPI")
)

// nak hands a message back, to be given out again after the delay.
func nak(delay time.Duration) []byte {
	return []byte(`-NAK {"delay":` + strconv.FormatInt(int64(delay), 10) + `}`)
}

func (d *delivery) say(what []byte) {
	if err := d.line.s.conn.NATS.Publish(d.msg.Reply, what); err != nil {
		// The message is handed out again after AckWait; the ledger knows what was done.
		d.line.s.log.Debug("an acknowledgement could not be written", "error", err)
	}
}

// handBack gives the message to another signer, after the delay. After its last try it
// leaves the queue: JetStream would keep it, and count it, until it is ten minutes old.
func (d *delivery) handBack(delay time.Duration) {
	if most := d.line.s.conn.Settings.MaxDeliver; most > 0 && d.tries >= uint64(most) {
		d.say(ackTerm)
		return
	}
	d.say(nak(delay))
}

// expired reports whether the header says that all callers have gone.
func (d *delivery) expired(now time.Time) bool {
	h := d.msg.Header.Get(queue.HeaderDeadline)
	ms, err := strconv.ParseInt(h, 10, 64)
	return h != "" && err == nil && now.UnixMilli() > ms
}

// done takes note of one outcome; with the last the message is acknowledged.
func (d *delivery) done() {
	if d.left.Add(-1) > 0 {
		return
	}
	d.line.s.forget(d)
	d.end()
	d.endCommit()
	if d.again.Load() {
		d.handBack(min(time.Duration(d.tries)*time.Second, 10*time.Second))
		return
	}
	d.say(ackDone)
}

// outcome is what became of one request for whose reply a gateway waits.
type outcome struct {
	d      *delivery
	result *queuev1.SignResult
}
