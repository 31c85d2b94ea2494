package signer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

const handSuffix = ".hand"

// adopt closes the accounts of the signers that died on this machine: their hands lie
// in the state directory, and nobody holds them. What fails is tried again with the
// next call.
func (s *Signer) adopt(ctx context.Context) error {
	if s.cfg.StateDir == "" {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(s.cfg.StateDir, "*"+handSuffix))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range files {
		if err := s.adoptFile(ctx, path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Signer) adoptFile(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // its holder has just settled it
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil // its signer lives
		}
		return err
	}
	epoch, data, err := readHand(path)
	if err != nil {
		return err
	}
	report, open := tally(data)
	if epoch != 0 {
		strays, err := s.judge(ctx, &report, open)
		if err != nil {
			return err
		}
		if err := s.book.RecordStrays(ctx, strays); err != nil {
			return err
		}
		report.Final = true
		err = s.book.ReportEpoch(ctx, epoch, report)
		if problem.KindOf(err) == problem.NotFound {
			// The ledger was restored from a backup that is older than the epoch.
			s.log.Error("the ledger does not know the epoch of a signer that died: what it signed is lost with what the ledger has lost",
				"epoch", epoch, "signatures", report.Signatures, "kept_as", path+".lost")
			return os.Rename(path, path+".lost")
		}
		if err != nil {
			return fmt.Errorf("closing the account of epoch %d: %w", epoch, err)
		}
		s.log.Info("closed the account of a signer that died", "epoch", epoch, "signatures", report.Signatures,
			"committed", report.Committed, "in_hand", len(open), "without_a_row", len(strays))
	}
	return os.Remove(path)
}

// readHand reads a hand from its file; epoch 0 says that its process died before it
// had one.
func readHand(path string) (epoch uint32, data []byte, err error) {
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) < handHeader || string(raw[:len(handMagic)]) != handMagic {
		return 0, make([]byte, handHeader), err
	}
	// Copied to where a word may be read as one.
	words := make([]uint64, (len(raw)+7)/8)
	data = unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(raw))
	copy(data, raw)
	return binary.LittleEndian.Uint32(data[8:]), data, nil
}

// judge asks the ledger what became of the serials in hand, and counts them. Those that
// it does not have are strays; a row that comes later, from a statement that outlived
// its client, ends the stray.
func (s *Signer) judge(ctx context.Context, r *ledger.EpochReport, open []openSlot) (strays []ledger.Stray, err error) {
	serials := make([]serial.Number, len(open))
	for i, o := range open {
		serials[i] = o.serial
	}
	stored, err := s.stored(ctx, serials)
	if err != nil {
		return nil, err
	}
	for _, o := range open {
		if !o.signed {
			r.Signatures++ // perhaps: nobody knows any more
		}
		if stored[o.serial] {
			r.Committed++
			continue
		}
		r.Discarded++
		strays = append(strays, ledger.Stray{Serial: o.serial, Reason: ledger.StrayDied})
	}
	return strays, nil
}

// stored returns which of the serials have a row.
func (s *Signer) stored(ctx context.Context, serials []serial.Number) (map[serial.Number]bool, error) {
	if len(serials) == 0 {
		return nil, nil
	}
	statuses, err := s.book.Statuses(ctx, serials)
	if err != nil {
		return nil, fmt.Errorf("looking for certificates in the ledger: %w", err)
	}
	stored := make(map[serial.Number]bool, len(statuses))
	for _, st := range statuses {
		stored[st.Serial] = true
	}
	return stored, nil
}
