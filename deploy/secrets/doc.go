// Package secrets makes what the parts of a deployment prove themselves with: the
// internal PKI (TLS on every connection and the ledger's users), NATS users by nkey
// with the subjects of their role, Redis users with the commands of theirs, and the
// keys that authenticate messages in the queue.
//
// A folder of secrets has one sub-folder for each part, which holds exactly what that
// part is given, and the folder "vault", which holds what they are made from and
// belongs on no server. Make is idempotent: it makes what is missing, renews
// certificates that are past two thirds of their life, and writes the rest again as it
// was. Rotate changes everything in three steps with overlap, so that parts may be
// restarted one by one between them: prepare (both generations are accepted, the old
// one is used), activate (the new one is used), retire (the old one is refused).
package secrets
