package secrets

// part is one sub-folder: what one kind of process is given.
type part struct {
	name string
	// user is the common name of its certificate, which is its user in the ledger.
	user string
	// hosts makes the certificate a server's, beside a client's.
	hosts func(Spec) []string
	// nats says that the part is a user of NATS, queueKeys which of the queue's keys it has.
	nats      bool
	queueKeys queueKeys
	// redis is its user in Redis; "" for none.
	redis string
	// pins are the HSM token's PINs that the part has.
	pins []string
}

// queueKeys are the queue's keys that a part has.
type queueKeys int

const (
	noKeys queueKeys = iota
	eventKeys
	allKeys
)

// The ledger's users; see ledger.Grants for what each may do there.
const (
	userOwner     = "certmill_owner"
	userGateway   = "certmill_gateway"
	userSigner    = "certmill_signer"
	userPresigner = "certmill_presigner"
	userViewer    = "certmill_viewer"
)

// parts lists every part.
var parts = []part{
	{name: "gateway", user: userGateway, nats: true, queueKeys: allKeys},
	{name: "signer", user: userSigner, nats: true, queueKeys: allKeys, pins: []string{pinFile}},
	{name: "presigner", user: userPresigner, nats: true, queueKeys: eventKeys, redis: "presigner", pins: []string{pinFile}},
	{name: "responder", user: "certmill-responder", redis: "responder"},
	// owner migrates and maintains the ledger and performs ceremonies.
	{name: "owner", user: userOwner, pins: tokenPINs},
	// viewer reads everything and changes nothing: dashboards, status, scaling.
	{name: "viewer", user: userViewer, nats: true, redis: "viewer"},
	// root makes the ledger's users and databases, once. CockroachDB knows it by this name.
	{name: "root", user: "root"},
	// nats is a user of itself too: of a region's cluster by which another region's is joined.
	{name: "nats", user: "certmill-nats", nats: true, hosts: func(s Spec) []string { return namesOf(s.Hosts.NATS) }},
	{name: "redis", user: "certmill-redis", hosts: func(s Spec) []string { return namesOf(s.Hosts.Redis) }},
	// CockroachDB's nodes must be called "node".
	{name: "ledger", user: "node", hosts: func(s Spec) []string { return namesOf(s.Hosts.Ledger) }},
}
