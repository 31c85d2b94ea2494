package target

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// stream is certmill's IssueStream: one stream a connection carries the requests of
// many callers, and request_id joins the answers to them. A stream that ends is
// opened again by the next request.
type stream struct {
	*grpcTarget
	cfg   Config
	lanes []*lane
}

// lane is one connection's stream.
type lane struct {
	conn *grpc.ClientConn

	mu   sync.Mutex
	open *openStreamState
}

// openStreamState is one stream while it lives.
type openStreamState struct {
	client certmillv1.CertificateAuthority_IssueStreamClient
	cancel context.CancelFunc
	ended  chan struct{} // closed when the reader has left

	sending sync.Mutex // gRPC allows one Send at a time

	mu      sync.Mutex
	waiting map[string]chan<- *certmillv1.IssueResult
	err     error // why it ended
}

func openStream(c Config) (Target, error) {
	g, err := c.grpc()
	if err != nil {
		return nil, err
	}
	t := &stream{grpcTarget: g, cfg: c}
	for _, conn := range g.conns {
		t.lanes = append(t.lanes, &lane{conn: conn})
	}
	return t, nil
}

// Close ends the streams and the connections.
func (t *stream) Close() error {
	for _, l := range t.lanes {
		l.mu.Lock()
		s := l.open
		l.open = nil
		l.mu.Unlock()
		if s != nil {
			s.cancel()
			<-s.ended
		}
	}
	return t.grpcTarget.Close()
}

func (t *stream) Do(ctx context.Context, r *Request) (Answer, error) {
	s, err := t.lanes[t.next.Add(1)%uint64(len(t.lanes))].stream()
	if err != nil {
		return Answer{}, grpcFailure(err)
	}
	answer := make(chan *certmillv1.IssueResult, 1)
	if err := s.ask(t.cfg.issueRequest(r), answer); err != nil {
		return Answer{}, grpcFailure(err)
	}
	timer := time.NewTimer(time.Until(r.Deadline))
	defer timer.Stop()
	select {
	case res := <-answer:
		return resultOf(res)
	case <-s.ended:
		select { // the answer may have come last
		case res := <-answer:
			return resultOf(res)
		default:
			return Answer{}, grpcFailure(s.reason())
		}
	case <-timer.C:
		s.forget(r.ID)
		return Answer{}, Classify(context.DeadlineExceeded)
	case <-ctx.Done():
		s.forget(r.ID)
		return Answer{}, ctx.Err()
	}
}

// stream returns the lane's stream, a new one if the last has ended. It lives until
// Close: it belongs to no single request.
func (l *lane) stream() (*openStreamState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		select {
		case <-l.open.ended:
		default:
			return l.open, nil
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	client, err := certmillv1.NewCertificateAuthorityClient(l.conn).IssueStream(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &openStreamState{client: client, cancel: cancel, ended: make(chan struct{}), waiting: map[string]chan<- *certmillv1.IssueResult{}}
	go s.read()
	l.open = s
	return s, nil
}

func (s *openStreamState) ask(m *certmillv1.IssueRequest, answer chan<- *certmillv1.IssueResult) error {
	s.mu.Lock()
	s.waiting[m.RequestId] = answer
	s.mu.Unlock()
	s.sending.Lock()
	err := s.client.Send(m)
	s.sending.Unlock()
	if err != nil {
		s.forget(m.RequestId)
		<-s.ended // Send says only EOF; Recv has the status
		return s.reason()
	}
	return nil
}

func (s *openStreamState) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, id)
}

func (s *openStreamState) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// read hands out answers until the stream ends.
func (s *openStreamState) read() {
	defer close(s.ended)
	defer s.cancel()
	for {
		res, err := s.client.Recv()
		s.mu.Lock()
		if err != nil {
			s.err = err
			s.mu.Unlock()
			return
		}
		answer := s.waiting[res.GetRequestId()]
		delete(s.waiting, res.GetRequestId())
		s.mu.Unlock()
		if answer != nil {
			answer <- res // has room for the one answer
		}
	}
}
