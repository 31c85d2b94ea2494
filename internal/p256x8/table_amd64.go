package p256x8

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
	"unsafe"

	"filippo.io/nistec"
)

// rowLen is how many multiples of a point a row of a table holds.
const rowLen = 64

// entry is an affine point of a table, in Montgomery form.
type entry struct{ x, y words }

// row is rowLen points, each further from the one before by the same point.
type row [rowLen]entry

// multiple returns k·p of a point that nistec made.
func multiple(p *nistec.P256Point, k int) *nistec.P256Point {
	q := nistec.NewP256Point()
	for bit := 30; bit >= 0; bit-- {
		q.Double(q)
		if k>>bit&1 == 1 {
			q.Add(q, p)
		}
	}
	return q
}

// place puts the coordinates of p, which is not the point at infinity, into a lane; they
// are not in Montgomery form yet.
func place(a *affine, lane int, p *nistec.P256Point) error {
	b := p.Bytes()
	if len(b) != 1+2*octets {
		return fmt.Errorf("a point of %d octets is not one of the curve", len(b))
	}
	set(&a.x, lane, wordsOf(b[1:]))
	set(&a.y, lane, wordsOf(b[1+octets:]))
	return nil
}

// tabulate returns for each pair a row: first, first + step, first + 2·step and so on.
func tabulate(first, step []*nistec.P256Point) ([]row, error) {
	rows := make([]row, len(first))
	for at := 0; at < len(rows); at += width {
		var zeroth, second, by affine
		for lane := range width {
			i := min(at+lane, len(rows)-1)
			sum := nistec.NewP256Point().Add(first[i], step[i])
			for _, c := range []struct {
				to   *affine
				from *nistec.P256Point
			}{{&zeroth, first[i]}, {&second, sum}, {&by, step[i]}} {
				if err := place(c.to, lane, c.from); err != nil {
					return nil, err
				}
			}
		}
		var points [rowLen]point
		for k, a := range []*affine{&zeroth, &second, &by} {
			toMontgomery(&a.x)
			toMontgomery(&a.y)
			if k < 2 {
				points[k] = point{a.x, a.y, unit}
			}
		}
		// From the second on, none is the step or its inverse, which add does not take: a
		// row is short beside the order of the curve.
		var s scratch
		for k := 2; k < rowLen; k++ {
			points[k] = points[k-1]
			addAffine(&points[k], &by, every, 0, &s)
		}
		flat, err := flatten(&points)
		if err != nil {
			return nil, err
		}
		for lane := range min(width, len(rows)-at) {
			for k := range flat {
				rows[at+lane][k] = entry{get(&flat[k].x, lane), get(&flat[k].y, lane)}
			}
		}
	}
	return rows, nil
}

// flatten makes points affine, with one inversion for each lane (Montgomery's trick).
func flatten(points *[rowLen]point) (*[rowLen]affine, error) {
	var before [rowLen]element // the product of all z before
	product := unit
	for k := range points {
		before[k] = product
		mul(&product, &product, &points[k].z)
	}
	fromMontgomery(&product)
	for lane := range width {
		v := number(get(&product, lane))
		if v.ModInverse(v, prime) == nil {
			return nil, fmt.Errorf("a multiple of the point is the point at infinity")
		}
		set(&product, lane, split(v))
	}
	toMontgomery(&product)
	flat := new([rowLen]affine)
	for k := rowLen - 1; k >= 0; k-- {
		var inverse, squared element
		mul(&inverse, &product, &before[k])
		mul(&product, &product, &points[k].z)
		sqr(&squared, &inverse)
		mul(&flat[k].x, &points[k].x, &squared)
		mul(&squared, &squared, &inverse)
		mul(&flat[k].y, &points[k].y, &squared)
	}
	return flat, nil
}

// startPoint returns a point of which nobody knows a relation to another that matters: the
// generator times a hash. Sums start there, so that none of them has to be the point at
// infinity, and it is taken off at their end.
func startPoint(n uint64) *nistec.P256Point {
	seed := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("certmill p256x8 "), n))
	p, err := nistec.NewP256Point().ScalarBaseMult(seed[:])
	if err != nil {
		panic(err) // a hash has 32 octets
	}
	return p
}

// negated returns -p.
func negated(p *nistec.P256Point) *nistec.P256Point { return nistec.NewP256Point().Negate(p) }

// generator holds multiples 1 to 512 of the generator, computed at their first use.
var generator = sync.OnceValues(func() (*[width * rowLen]entry, error) {
	g := nistec.NewP256Point().SetGenerator()
	var first, step []*nistec.P256Point
	for i := range width {
		first, step = append(first, multiple(g, i*rowLen+1)), append(step, g)
	}
	rows, err := tabulate(first, step)
	if err != nil {
		return nil, err
	}
	return (*[width * rowLen]entry)(unsafe.Pointer(&rows[0])), nil
})
