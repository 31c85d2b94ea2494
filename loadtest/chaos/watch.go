package chaos

import (
	"bytes"
	"context"
	"crypto"
	crand "crypto/rand"
	"crypto/x509"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/loadtest/chaos/judge"
	"github.com/certmill/certmill/loadtest/target"
)

const (
	ocspTimeout = time.Second
	ocspEvery   = 40 * time.Millisecond
	// watched bounds the serials of each kind that are asked about: the latest.
	watched = 200
)

// A watch asks every responder after certificates: those that were issued, those that
// were revoked, and those that never were.
type watch struct {
	rec    *judge.Recorder
	issuer *x509.Certificate
	nodes  []*node
	seed   uint64

	mu         sync.Mutex
	good, gone []string
}

func (w *watch) issued(serial string)  { w.keep(&w.good, serial) }
func (w *watch) revoked(serial string) { w.keep(&w.gone, serial) }

func (w *watch) keep(list *[]string, serial string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if *list = append(*list, serial); len(*list) > watched {
		*list = (*list)[1:]
	}
}

// pick chooses whom to ask about.
func (w *watch) pick(r *rand.Rand) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch dice := r.IntN(10); {
	case dice < 6 && len(w.gone) > 0:
		// Mostly the last: it is there that good could still be said.
		if dice < 3 {
			return w.gone[len(w.gone)-1-r.IntN(min(len(w.gone), 5))]
		}
		return w.gone[r.IntN(len(w.gone))]
	case dice < 9 && len(w.good) > 0:
		return w.good[r.IntN(len(w.good))]
	}
	n, err := serial.New(crand.Reader, 1+r.Uint32N(5), time.Now(), time.Now().Add(24*time.Hour))
	if err != nil {
		return ""
	}
	return n.String()
}

// drive asks until ctx ends.
func (w *watch) drive(ctx context.Context) {
	var all sync.WaitGroup
	for i, n := range w.nodes {
		all.Go(func() {
			r := rand.New(rand.NewPCG(w.seed, uint64(1_000_000+i)))
			tick := time.NewTicker(ocspEvery)
			defer tick.Stop()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2, DialContext: (&net.Dialer{Timeout: ocspTimeout}).DialContext}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if s := w.pick(r); s != "" {
					w.ask(ctx, client, n, s)
				}
			}
		})
	}
	all.Wait()
}

// everything asks every responder once after every revocation kept: the last word.
func (w *watch) everything(ctx context.Context) {
	w.mu.Lock()
	gone := append([]string(nil), w.gone...)
	w.mu.Unlock()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2}}
	defer client.CloseIdleConnections()
	for _, n := range w.nodes {
		for _, s := range gone {
			w.ask(ctx, client, n, s)
		}
	}
}

func (w *watch) ask(ctx context.Context, client *http.Client, n *node, number string) {
	s, err := serial.Parse(number)
	if err != nil {
		return
	}
	q, err := target.NewStatusRequest(w.issuer, s.Big(), crypto.SHA1)
	if err != nil {
		return
	}
	callCtx, cancel := context.WithTimeout(ctx, ocspTimeout)
	defer cancel()
	e := judge.Event{Kind: judge.OCSP, Node: n.name, Serial: number, At: time.Now(), Deadline: ocspTimeout}
	e.Outcome, e.Detail = w.status(callCtx, client, "http://"+net.JoinHostPort(n.ip, ocspPort)+"/", q)
	e.Took = time.Since(e.At)
	if ctx.Err() == nil {
		w.rec.Add(e)
	}
}

func (w *watch) status(ctx context.Context, client *http.Client, url string, q *target.StatusRequest) (outcome, detail string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(q.DER))
	if err != nil {
		return judge.Broken, err.Error()
	}
	request.Header.Set("Content-Type", "application/ocsp-request")
	response, err := client.Do(request)
	if err == nil {
		defer response.Body.Close()
		var der []byte
		if der, err = io.ReadAll(io.LimitReader(response.Body, 64<<10)); err == nil {
			return readStatus(der, w.issuer)
		}
	}
	if ctx.Err() != nil {
		return judge.Timeout, err.Error()
	}
	return judge.Broken, err.Error()
}

// readStatus verifies an answer and names what it says.
func readStatus(der []byte, issuer *x509.Certificate) (outcome, detail string) {
	res, err := ocsp.ParseResponse(der, issuer)
	switch {
	case err != nil:
		return "refused", err.Error() // unauthorized or tryLater, or an answer that does not verify
	case time.Now().After(res.NextUpdate):
		return "expired", res.NextUpdate.String()
	case res.Status == ocsp.Good:
		return judge.Good, ""
	case res.Status == ocsp.Revoked:
		return judge.Revoked, ""
	}
	return "unknown", ""
}
