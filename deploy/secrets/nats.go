package secrets

import (
	"fmt"
	"strings"

	"github.com/certmill/certmill/internal/queue"
)

// rights are the subjects that a user of NATS may publish and subscribe to.
type rights struct{ publish, subscribe []string }

// natsRights returns what a part may do at the broker. The signers alone make and
// change streams and consumers of work: they hold the CA's key, so nobody who can do
// less to the CA can divert the queue. The server adds the answer of a request, which
// comes on the user's own inbox.
func natsRights(s Spec, part string) rights {
	var r rights
	api := func(subjects ...string) {
		for _, sub := range subjects {
			r.publish = append(r.publish, "$JS.API."+sub)
		}
	}
	publish := func(subject func(issuer string) string) {
		for _, issuer := range s.issuerTokens() {
			r.publish = append(r.publish, subject(issuer))
		}
	}
	switch part {
	case "gateway":
		publish(func(i string) string { return queue.SignSubject(i, "*") })
		publish(queue.RevokedSubject)
		api("STREAM.INFO."+queue.SignStream, "STREAM.INFO."+queue.EventsStream)
		r.subscribe = []string{queue.ReplySubject("*"), queue.PresenceSubject("*")}
	case "signer":
		r.publish = []string{queue.ReplySubject("*")}
		publish(queue.IssuedSubject)
		for _, stream := range []string{queue.SignStream, queue.EventsStream} {
			api("STREAM.INFO."+stream, "STREAM.CREATE."+stream, "STREAM.UPDATE."+stream)
		}
		api("CONSUMER.INFO."+queue.SignStream+".*", "CONSUMER.CREATE."+queue.SignStream+".>",
			"CONSUMER.DURABLE.CREATE."+queue.SignStream+".*", "CONSUMER.MSG.NEXT."+queue.SignStream+".*")
		r.publish = append(r.publish, acks(queue.SignStream)...)
	case "presigner":
		api("STREAM.INFO."+queue.EventsStream, "CONSUMER.INFO."+queue.EventsStream+".*",
			"CONSUMER.CREATE."+queue.EventsStream+".>", "CONSUMER.DURABLE.CREATE."+queue.EventsStream+".*",
			"CONSUMER.MSG.NEXT."+queue.EventsStream+".*")
		r.publish = append(r.publish, acks(queue.EventsStream)...)
	case "nats": // between regions: events, and nothing else
		r.publish = []string{queue.IssuedSubject("*"), queue.RevokedSubject("*")}
		r.subscribe = r.publish
	case "viewer":
		api("INFO", "STREAM.INFO.*", "STREAM.NAMES", "STREAM.LIST", "CONSUMER.INFO.*.*", "CONSUMER.NAMES.*", "CONSUMER.LIST.*")
	}
	if part != "viewer" && part != "nats" {
		r.publish = append(r.publish, queue.PresenceSubject(part))
	}
	if part == "presigner" { // it brings on what responders have left in Redis
		r.publish = append(r.publish, queue.PresenceSubject("responder"))
	}
	return r
}

// acks returns the subjects of acknowledgements for a stream: those of today and those
// with domain and account (NATS ADR-15), which newer servers use.
func acks(stream string) []string {
	return []string{"$JS.ACK." + stream + ".>", "$JS.ACK.*.*." + stream + ".>"}
}

// natsUsers renders the accounts and users of the broker as a file that nats.conf
// includes. A user has an nkey for each generation that is accepted.
func natsUsers(s Spec, accepted []generation) (string, error) {
	var b strings.Builder
	b.WriteString(`# Written by "certmill deploy secrets". Included by nats.conf; reload the servers after
# a change (nats-server --signal reload). Public keys only.
accounts {
  CERTMILL {
    jetstream: enabled
    users: [
`)
	for _, p := range parts {
		if !p.nats {
			continue
		}
		r := natsRights(s, p.name)
		for _, g := range accepted {
			public, err := g.nkeyPublic(p.name)
			if err != nil {
				return "", err
			}
			// A right to answer is no right to ask: replies go to subjects granted here.
			subscribe := append([]string{queue.InboxPrefix(public) + ".>"}, r.subscribe...)
			fmt.Fprintf(&b, "      { nkey: %s # %s, generation %d\n", public, p.name, g.number)
			fmt.Fprintf(&b, "        permissions { publish { allow: [%s] }, subscribe { allow: [%s] } } }\n", quoted(r.publish), quoted(subscribe))
		}
	}
	b.WriteString("    ]\n  }\n  # For the servers' own traffic; it has no users.\n  SYS {}\n}\nsystem_account: SYS\n")
	return b.String(), nil
}

func quoted(subjects []string) string {
	q := make([]string, len(subjects))
	for i, s := range subjects {
		q[i] = `"` + s + `"`
	}
	return strings.Join(q, ", ")
}
