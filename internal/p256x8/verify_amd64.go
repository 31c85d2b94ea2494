package p256x8

import (
	"crypto/elliptic"
	"math/big"
	"sync"
	"unsafe"

	"filippo.io/nistec"
	"golang.org/x/sys/cpu"
)

const (
	// The digits of the scalar of an unknown point, and how many multiples of the point
	// they need.
	keyBits   = 5
	keyDigits = 52
	keyRow    = 1 << (keyBits - 1)
	// Those of the generator's, one for every two of the others.
	baseBits   = 2 * keyBits
	baseDigits = keyDigits / 2

	entrySize = int(unsafe.Sizeof(entry{}))
	pointSize = int(unsafe.Sizeof(point{}))
)

// Supported reports whether this processor can work in lanes.
func Supported() bool { return supported }

var supported = cpu.X86.HasAVX512F && cpu.X86.HasAVX512IFMA

// worthwhile is how many signatures take longer by crypto/ecdsa than eight in lanes.
const worthwhile = 2

// inLanes finds out which signatures are valid, with a few that it does not know of.
func inLanes(all []Signature, valid []bool) {
	queue := make([]job, 0, len(all))
	for i := range all {
		if j, ok := newJob(&all[i]); ok {
			j.at = i
			queue = append(queue, j)
		}
	}
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	for len(queue) >= worthwhile {
		n := min(width, len(queue))
		known, err := w.work(queue[:n])
		if err != nil {
			return
		}
		for i, j := range queue[:n] {
			valid[j.at] = known>>i&1 == 1
		}
		queue = queue[n:]
	}
}

// job is a signature on its way to become a query.
type job struct {
	Values
	x, y words
	at   int
}

func newJob(s *Signature) (j job, ok bool) {
	if s.Key.Curve != elliptic.P256() {
		return j, false
	}
	if j.Values, ok = Parse(s.Digest, s.Value); !ok {
		return j, false
	}
	point, err := s.Key.Bytes()
	if err != nil {
		return j, false
	}
	j.x, j.y = wordsOf(point[1:]), wordsOf(point[1+octets:])
	return j, true
}

// work answers up to eight jobs as verify does.
func (w *workspace) work(batch []job) (known uint64, err error) {
	var queries [width]query
	for i, inverse := range inverses(batch) {
		j := batch[i]
		queries[i] = query{x: j.x, y: j.y, r: split(j.R)}
		queries[i].u1, queries[i].u2 = multipliers(j.E, j.R, inverse)
	}
	return w.verify(queries[:len(batch)])
}

// inverses returns 1/s mod n of each, with one inversion for all (Montgomery's trick).
func inverses(batch []job) []*big.Int {
	out := make([]*big.Int, len(batch))
	product := big.NewInt(1)
	for i, j := range batch {
		out[i] = product
		product = new(big.Int).Mul(product, j.S)
		product.Mod(product, order)
	}
	product.ModInverse(product, order) // s is not 0, and n a prime
	for i := len(batch) - 1; i >= 0; i-- {
		out[i] = out[i].Mul(out[i], product)
		out[i].Mod(out[i], order)
		product.Mul(product, batch[i].S)
		product.Mod(product, order)
	}
	return out
}

// query is a signature to verify: is r the x coordinate of u1·G + u2·Q?
type query struct {
	x, y   words // Q, a point of the curve
	u1, u2 scalar
	r      words
}

// workspace is the memory of one verification. It begins at a cache line.
type workspace struct {
	sum     point
	operand point
	fixed   affine
	key     affine
	r, t    element
	table   [keyRow]point
	s       scratch
	u1      [width][baseDigits]int16
	u2      [width][keyDigits]int16
	d1, d2  [fixedDigits + 1]int16
}

var workspaces = sync.Pool{New: func() any { return newWorkspace() }}

func newWorkspace() *workspace {
	const line = 64
	memory := make([]byte, unsafe.Sizeof(workspace{})+line)
	at := unsafe.Pointer(&memory[0])
	return (*workspace)(unsafe.Add(at, -uintptr(at)&(line-1)))
}

// ends are where sums of verify start, and what takes that off after their 255 doublings.
type ends struct{ start, off affine }

var verifyEnds = sync.OnceValues(func() (e ends, err error) {
	start := startPoint(0)
	if e.start, err = everywhere(start); err != nil {
		return e, err
	}
	off := nistec.NewP256Point().Set(start)
	for range (keyDigits - 1) * keyBits {
		off.Double(off)
	}
	e.off, err = everywhere(negated(off))
	return e, err
})

// everywhere returns a point in each lane.
func everywhere(p *nistec.P256Point) (a affine, err error) {
	for lane := range width {
		if err := place(&a, lane, p); err != nil {
			return a, err
		}
	}
	toMontgomery(&a.x)
	toMontgomery(&a.y)
	return a, nil
}

// verify answers up to eight queries: a bit for each signature that is known to be
// right. The others are most likely wrong; a few are not, such as one whose r is the
// remainder of a larger coordinate.
func (w *workspace) verify(queries []query) (known uint64, err error) {
	base, err := generator()
	if err != nil {
		return 0, err
	}
	ends, err := verifyEnds()
	if err != nil {
		return 0, err
	}
	for lane := range width {
		q := &queries[min(lane, len(queries)-1)]
		set(&w.key.x, lane, q.x)
		set(&w.key.y, lane, q.y)
		set(&w.r, lane, q.r)
		q.u1.recode(w.u1[lane][:], baseBits)
		q.u2.recode(w.u2[lane][:], keyBits)
	}
	toMontgomery(&w.key.x)
	toMontgomery(&w.key.y)
	toMontgomery(&w.r)
	// 1 to 16 times each key.
	w.table[0] = point{w.key.x, w.key.y, unit}
	w.table[1] = w.table[0]
	double(&w.table[1], 1, &w.s)
	for k := 2; k < keyRow; k++ {
		w.table[k] = w.table[k-1]
		addAffine(&w.table[k], &w.key, every, 0, &w.s)
	}
	w.sum = point{ends.start.x, ends.start.y, unit}
	for i := keyDigits - 1; i >= 0; i-- {
		if i < keyDigits-1 {
			double(&w.sum, keyBits, &w.s)
		}
		var c choice
		for lane := range width {
			c.choose(lane, w.u2[lane][i], pointSize, 8*lane)
		}
		gather(&w.operand.x[0], &w.table[0].x[0][0], &c.offsets, width*8, uint64(pointSize)/(width*8))
		add(&w.sum, &w.operand, c.apply, c.negative, &w.s)
		if i%2 == 0 {
			c = choice{}
			for lane := range width {
				c.choose(lane, w.u1[lane][i/2], entrySize, 0)
			}
			gather(&w.fixed.x[0], &base[0].x[0], &c.offsets, 8, uint64(entrySize)/8)
			addAffine(&w.sum, &w.fixed, c.apply, c.negative, &w.s)
		}
	}
	addAffine(&w.sum, &ends.off, every, 0, &w.s)
	return w.compare() & (1<<len(queries) - 1), nil
}

// compare returns in which lanes r is the x coordinate of the sum, which is x/z². A sum
// that met a case for which add does not hold has z = 0, and so has the point at
// infinity.
//
// All rests on that z is looked at: who makes a key can have his sum meet such a case, and
// then x = r·z² is 0 = 0 for every r.
func (w *workspace) compare() (equal uint64) {
	sqr(&w.t, &w.sum.z)
	mul(&w.t, &w.t, &w.r)
	fromMontgomery(&w.t)
	fromMontgomery(&w.sum.x)
	fromMontgomery(&w.sum.z)
	for lane := range width {
		if get(&w.sum.z, lane) != (words{}) && get(&w.t, lane) == get(&w.sum.x, lane) {
			equal |= 1 << lane
		}
	}
	return equal
}

// multipliers returns u1 and u2 of SEC 1 section 4.1.4 for e, the number of a digest.
func multipliers(e, r, w *big.Int) (u1, u2 scalar) {
	var b [octets]byte
	u := new(big.Int).Mul(e, w)
	u1 = scalarOf((*[octets]byte)(u.Mod(u, order).FillBytes(b[:])))
	u.Mul(r, w)
	u2 = scalarOf((*[octets]byte)(u.Mod(u, order).FillBytes(b[:])))
	return u1, u2
}
