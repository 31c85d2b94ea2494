package p256x8

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"math/big"
	"sync"

	"filippo.io/nistec"
)

const (
	// The digits of both scalars for a fixed key, each of which has a row of its own.
	fixedBits   = 7
	fixedDigits = 37
	// rounds is how many additions each lane makes for one of the scalars.
	rounds = (fixedDigits + width) / width
)

// FixedKey verifies signatures of one key on P-256. It holds 190 KB of multiples of the
// key's point, takes a millisecond to make, and is safe for concurrent use.
type FixedKey struct {
	public *ecdsa.PublicKey
	rows   []row
}

// NewFixedKey computes the multiples of key. It fails for a key on another curve or that
// is no point of it, and with [ErrUnsupported].
func NewFixedKey(key *ecdsa.PublicKey) (*FixedKey, error) {
	if !supported {
		return nil, ErrUnsupported
	}
	p, err := Point(key)
	if err != nil {
		return nil, err
	}
	rows, err := digitRows(p)
	if err != nil {
		return nil, err
	}
	own, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), p.Bytes())
	if err != nil {
		return nil, err
	}
	return &FixedKey{own, rows}, nil
}

// Verify reports whether signature is one of the key over digest, as [Verify] does.
func (k *FixedKey) Verify(digest, signature []byte) bool {
	return k.known(digest, signature) || ecdsa.VerifyASN1(k.public, digest, signature)
}

func (k *FixedKey) known(digest, signature []byte) bool {
	v, ok := Parse(digest, signature)
	if !ok {
		return false
	}
	u1, u2 := multipliers(v.E, v.R, new(big.Int).ModInverse(v.S, order))
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	right, err := w.verifyFixed(k.rows, &u1, &u2, split(v.R))
	return err == nil && right
}

// sums are what verifyFixed needs of the generator.
type sums struct {
	// rows holds the multiples for each digit and, as the first entry of one more row,
	// what takes the lanes' starts off.
	rows []row
	// start is where each lane starts.
	start affine
}

var baseSums = sync.OnceValues(func() (*sums, error) {
	b := new(sums)
	var err error
	if b.rows, err = digitRows(nistec.NewP256Point().SetGenerator()); err != nil {
		return nil, err
	}
	total := nistec.NewP256Point()
	for lane := range width {
		p := startPoint(uint64(lane) + 1)
		if err := place(&b.start, lane, p); err != nil {
			return nil, err
		}
		total.Add(total, p)
	}
	toMontgomery(&b.start.x)
	toMontgomery(&b.start.y)
	off, err := everywhere(negated(total))
	if err != nil {
		return nil, err
	}
	b.rows = append(b.rows, row{{get(&off.x, 0), get(&off.y, 0)}})
	return b, nil
})

// digitRows returns a row for each digit of a scalar that p is multiplied by.
func digitRows(p *nistec.P256Point) ([]row, error) {
	var points []*nistec.P256Point
	for range fixedDigits {
		points = append(points, p)
		p = nistec.NewP256Point().Set(p)
		for range fixedBits {
			p.Double(p)
		}
	}
	return tabulate(points, points)
}

// verifyFixed says whether r is known to be the x coordinate of u1·G + u2·Q, of whose
// multiples rows are made. One sum is spread over all lanes: each adds every eighth
// multiple, and then the lanes are added.
func (w *workspace) verifyFixed(rows []row, u1, u2 *scalar, r words) (bool, error) {
	base, err := baseSums()
	if err != nil {
		return false, err
	}
	d1, d2 := &w.d1, &w.d2
	u1.recode(d1[:fixedDigits], fixedBits)
	u2.recode(d2[:fixedDigits], fixedBits)
	d1[fixedDigits] = 1 // takes the starts off
	w.sum = point{base.start.x, base.start.y, unit}
	for at := 0; at < rounds*width; at += width {
		w.addRows(base.rows, d1[:fixedDigits+1], at)
		w.addRows(rows, d2[:fixedDigits], at)
	}
	for n := width / 2; n > 0; n /= 2 {
		for i, e := range []*element{&w.sum.x, &w.sum.y, &w.sum.z} {
			to := []*element{&w.operand.x, &w.operand.y, &w.operand.z}[i]
			for l := range e {
				copy(to[l][:n], e[l][n:])
			}
		}
		add(&w.sum, &w.operand, 1<<n-1, 0, &w.s)
	}
	set(&w.r, 0, r)
	toMontgomery(&w.r)
	return w.compare()&1 == 1, nil
}

// addRows adds, in each lane, the multiple of one digit: that with the number at and those
// after it.
func (w *workspace) addRows(rows []row, digits []int16, at int) {
	var c choice
	for lane := range width {
		if i := at + lane; i < len(digits) {
			c.choose(lane, digits[i], entrySize, i*rowLen*entrySize)
		}
	}
	if c.apply == 0 {
		return
	}
	gather(&w.fixed.x[0], &rows[0][0].x[0], &c.offsets, 8, uint64(entrySize)/8)
	addAffine(&w.sum, &w.fixed, c.apply, c.negative, &w.s)
}
