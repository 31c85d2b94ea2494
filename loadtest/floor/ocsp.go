package floor

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"math/big"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
	"golang.org/x/sync/errgroup"
)

// statuses answers OCSP from a map.
type statuses struct {
	answers map[string][]byte // by the serial's content octets
}

// MaxStatuses bounds the answers held, some 400 bytes each.
const MaxStatuses = 2_000_000

func newStatuses(ctx context.Context, ca *authority, n int) (*statuses, error) {
	s := &statuses{answers: make(map[string][]byte, n)}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	each := runtime.GOMAXPROCS(0)
	for w := range each {
		g.Go(func() error {
			for range (min(n, MaxStatuses) + each - 1 - w) / each {
				if err := ctx.Err(); err != nil {
					return err
				}
				serial, answer, err := ca.status()
				if err != nil {
					return err
				}
				mu.Lock()
				s.answers[string(serial.Bytes())] = answer
				mu.Unlock()
			}
			return nil
		})
	}
	return s, g.Wait()
}

// status makes a "good" for a new serial.
func (a *authority) status() (*big.Int, []byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	answer, err := ocsp.CreateResponse(a.cert, a.cert, ocsp.Response{
		Status: ocsp.Good, SerialNumber: serial, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(24 * time.Hour),
	}, a.key)
	return serial, answer, err
}

// list returns the serials in hexadecimal, one a line.
func (s *statuses) list() []byte {
	var b bytes.Buffer
	for serial := range s.answers {
		b.WriteString(hex.EncodeToString([]byte(serial)))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func (s *statuses) serve(w http.ResponseWriter, r *http.Request) {
	var request []byte
	var err error
	if r.Method == http.MethodPost {
		request, err = io.ReadAll(http.MaxBytesReader(w, r.Body, 4<<10))
	} else {
		request, err = base64.StdEncoding.DecodeString(strings.TrimLeft(r.URL.Path, "/"))
	}
	answer := ocsp.UnauthorizedErrorResponse
	if err == nil {
		if q, perr := ocsp.ParseRequest(request); perr != nil {
			answer = ocsp.MalformedRequestErrorResponse
		} else if a := s.answers[string(q.SerialNumber.Bytes())]; a != nil {
			answer = a
		}
	}
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	_, _ = w.Write(answer)
}
