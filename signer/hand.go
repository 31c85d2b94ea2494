package signer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// A hand is what one epoch has in hand: the serials that are being signed or are signed
// and not yet settled, and the counts of those that are. It lies in a file that is
// mapped into memory. The kernel keeps its pages when the process is killed, so the
// next signer on this machine can close the account of the dead one to the signature.
// What is in it is not needed to issue correctly: when the machine itself is lost, the
// account of its last epochs stays open and nothing else is.
//
// The file is a header of 64 octets (magic, epoch, number of slots, signatures of CRLs)
// and slots of 32 octets. A slot is one word, which is written at once, and a serial:
//
//	bits 0–1    free, signing, signed
//	bits 2–32   how many signatures of this slot were committed
//	bits 33–63  how many were discarded
//
// A transition with its count is one store, so that a death between two instructions
// counts nothing twice. It is safe for concurrent use.
type hand struct {
	file *os.File // nil: in memory only
	data []byte
	free chan int32

	closing sync.Mutex // between report and close; who signs has ended before close
	last    ledger.EpochReport
	closed  bool
}

const (
	handMagic  = "cmhand01"
	handHeader = 64
	handSlot   = 32

	slotFree    = 0
	slotSigning = 1
	slotSigned  = 2
	slotState   = 3
	committed1  = 1 << 2
	discarded1  = 1 << 33
	countMask   = 1<<31 - 1
)

// newHand makes the hand of an epoch in dir, or in memory where dir is empty.
func newHand(dir string, epoch uint32, slots int) (*hand, error) {
	h := &hand{free: make(chan int32, slots)}
	size := handHeader + slots*handSlot
	if dir == "" {
		h.data = unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(make([]uint64, size/8)))), size)
	} else if err := h.create(dir, epoch, size); err != nil {
		return nil, fmt.Errorf("making the file of signatures in hand: %w", err)
	}
	copy(h.data, handMagic)
	binary.LittleEndian.PutUint32(h.data[8:], epoch)
	binary.LittleEndian.PutUint32(h.data[12:], uint32(slots))
	for i := range slots {
		h.free <- int32(i)
	}
	return h, nil
}

func (h *hand) create(dir string, epoch uint32, size int) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, strconv.FormatUint(uint64(epoch), 10)+handSuffix)
	if h.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	// The lock says that its process lives.
	if err = syscall.Flock(int(h.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
		// Written, not truncated to size: on a full disk this fails, where a store into a
		// hole of the mapping would end the process.
		if _, err = h.file.Write(make([]byte, size)); err == nil {
			h.data, err = syscall.Mmap(int(h.file.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		}
	}
	if err != nil {
		err = errors.Join(err, h.file.Close(), os.Remove(path))
	}
	return err
}

func (h *hand) word(slot int32) *uint64 {
	return (*uint64)(unsafe.Pointer(&h.data[handHeader+int(slot)*handSlot]))
}

// take notes that the serial is about to be signed. It is Overloaded when too many
// signatures wait to be settled.
func (h *hand) take(n serial.Number) (int32, error) {
	select {
	case slot := <-h.free:
		copy(h.data[handHeader+int(slot)*handSlot+8:], n[:])
		w := h.word(slot)
		atomic.StoreUint64(w, atomic.LoadUint64(w)|slotSigning)
		return slot, nil
	default:
		return 0, problem.Busy("signatures_in_hand", time.Second, "%d signatures wait for the ledger to say what became of them", cap(h.free))
	}
}

func (h *hand) serial(slot int32) serial.Number {
	return serial.Number(h.data[handHeader+int(slot)*handSlot+8:])
}

// signed notes that the signature was made.
func (h *hand) signed(slot int32) {
	w := h.word(slot)
	atomic.StoreUint64(w, atomic.LoadUint64(w)&^slotState|slotSigned)
}

// settle frees the slot and adds its signature to a count: committed1, discarded1, or 0
// where none came out of the token.
func (h *hand) settle(slot int32, count uint64) {
	w := h.word(slot)
	atomic.StoreUint64(w, atomic.LoadUint64(w)&^slotState+count)
	h.free <- slot
}

// report adds the slots up: what is signed is counted, what is being signed is not.
func (h *hand) report() ledger.EpochReport {
	h.closing.Lock()
	defer h.closing.Unlock()
	if !h.closed {
		h.last, _ = tally(h.data)
	}
	return h.last
}

// signedCRL counts a signature of a CRL.
func (h *hand) signedCRL() {
	h.closing.Lock()
	defer h.closing.Unlock()
	if !h.closed {
		atomic.AddUint64((*uint64)(unsafe.Pointer(&h.data[16])), 1)
	}
}

// close gives the file up; settled says that all of it is in the ledger, and removes it.
func (h *hand) close(settled bool) error {
	h.closing.Lock()
	defer h.closing.Unlock()
	h.closed = true
	if h.file == nil {
		return nil
	}
	var errs []error
	if settled {
		errs = append(errs, os.Remove(h.file.Name()))
	}
	errs = append(errs, syscall.Munmap(h.data), h.file.Close())
	h.file = nil
	return errors.Join(errs...)
}

// tally adds up the slots of a hand, and returns the serials that are not settled: those
// signed are in the report, those that may be are not.
func tally(data []byte) (r ledger.EpochReport, open []openSlot) {
	r.CRLs = int64(atomic.LoadUint64((*uint64)(unsafe.Pointer(&data[16]))))
	for at := handHeader; at+handSlot <= len(data); at += handSlot {
		w := atomic.LoadUint64((*uint64)(unsafe.Pointer(&data[at])))
		r.Committed += int64(w >> 2 & countMask)
		r.Discarded += int64(w >> 33)
		if state := w & slotState; state != slotFree {
			open = append(open, openSlot{serial.Number(data[at+8:]), state == slotSigned})
			if state == slotSigned {
				r.Signatures++
			}
		}
	}
	r.Signatures += r.Committed + r.Discarded + r.CRLs
	return r, open
}

// openSlot is a serial that was in hand when its process died.
type openSlot struct {
	serial serial.Number
	signed bool
}
