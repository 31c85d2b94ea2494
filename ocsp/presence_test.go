package ocsp

import (
	"net"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/testenv"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// A responder that reads a replica leaves word at the primary, which is what presigners
// read: it is in the status of the service like any other.
func TestAResponderOfAReplicaIsHeardOf(t *testing.T) {
	s := newService(t) // its Redis is the primary
	replica := testenv.Redis(t)
	reader, err := OpenStore(redisConfig(replica), DefaultNamespace)
	noError(t, err)
	defer reader.Close()
	host, port, err := net.SplitHostPort(s.proxy.Addr())
	noError(t, err)
	noError(t, reader.client.Do(t.Context(), "REPLICAOF", host, port).Err())
	if err := reader.PutReport(t.Context(), &certmillv1.RoleStatus{Instance: "x"}); err == nil {
		t.Fatal("the replica can be written: this test shows nothing")
	}
	s.start(func(c *Config) { c.Redis, c.ReportTo = redisConfig(replica), []string{s.proxy.Addr()} })
	eventually(t, "the responder is heard of at the primary", func() bool {
		reports, err := s.store.Reports(t.Context(), time.Now())
		noError(t, err)
		return len(reports) == 1 && reports[0].State == "ready"
	})
}
