package fixedkey

import "crypto/ecdsa"

// NewP256Table is NewP256 as on a processor without lanes.
func NewP256Table(key *ecdsa.PublicKey) (*P256, error) {
	t, err := newTable(key)
	return &P256{table: t}, err
}
