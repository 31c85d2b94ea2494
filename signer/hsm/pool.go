package hsm

import "context"

// acquire takes a session, waiting until ctx ends, the token is closed or is stuck.
func (t *Token) acquire(ctx context.Context) (*session, error) {
	select {
	case <-t.closing:
		return nil, ErrClosed
	default:
	}
	select {
	case s := <-t.free:
		return s, nil
	default:
	}
	select {
	case s := <-t.free:
		return s, nil
	case <-t.closing:
		return nil, ErrClosed
	case <-t.stuck:
		return nil, errModuleDead
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// release gives a session back. The channel has room for all, so it never waits.
func (t *Token) release(s *session) { t.free <- s }

// Free returns how many sessions are idle: how much work the token could begin at
// once. It is 0 while the token is out of service.
func (t *Token) Free() int {
	if t.admit() != nil {
		return 0
	}
	return len(t.free)
}
