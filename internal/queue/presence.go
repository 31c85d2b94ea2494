package queue

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

const (
	presencePrefix = "certmill.presence."
	// presenceBacklog bounds the reports that wait to be heard.
	presenceBacklog = 1024
)

// PresenceSubject returns the subject on which the processes of a role report.
func PresenceSubject(role string) string { return presencePrefix + role }

// Report tells whoever listens how this process is. It waits for nothing.
func (c *Conn) Report(_ context.Context, m *certmillv1.RoleStatus) error {
	if !c.NATS.IsConnected() {
		return c.Ready() // a report that waits for the connection is an old one
	}
	return c.Publish(PresenceSubject(m.GetRole()), m)
}

// HearReports calls heard, from one goroutine, with every authentic report of a role
// until ctx ends. What is forged is dropped and told to forged.
func (c *Conn) HearReports(ctx context.Context, heard func(*certmillv1.RoleStatus), forged func()) error {
	messages := make(chan *nats.Msg, presenceBacklog)
	sub, err := c.NATS.ChanSubscribe(presencePrefix+"*", messages)
	if err != nil {
		return fmt.Errorf("listening for reports: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection is closed
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-messages:
			r := &certmillv1.RoleStatus{}
			if c.Keys.Open(m.Subject, m.Data, r) != nil || r.GetRole() != strings.TrimPrefix(m.Subject, presencePrefix) {
				forged()
				continue
			}
			heard(r)
		}
	}
}
