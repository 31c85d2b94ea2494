package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// result is one run of the load generator.
type result struct {
	rate     float64 // answers a second
	p50, p99 time.Duration
	wrong    int
}

// load asks addr over keep-alive connections for a while: each connection sends one
// request and waits for its answer. pick chooses a certificate; request gives its
// bytes on the wire. A warm-up of a fifth of the time is not counted.
func load(addr string, connections int, d time.Duration, pick func(*rand.Rand) int, request func(int) []byte) (result, error) {
	type tally struct {
		latencies []time.Duration
		wrong     int
		err       error
	}
	tallies := make([]tally, connections)
	warm := time.Now().Add(d / 5)
	end := time.Now().Add(d + d/5)
	var wg sync.WaitGroup
	for i := range tallies {
		wg.Go(func() {
			t := &tallies[i]
			random := rand.New(rand.NewPCG(uint64(i), 1)) //nolint:gosec // load, not secrets
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.err = err
				return
			}
			defer func() { _ = c.Close() }()
			r := bufio.NewReaderSize(c, 8<<10)
			for {
				start := time.Now()
				if start.After(end) {
					return
				}
				if _, err := c.Write(request(pick(random))); err != nil {
					t.err = err
					return
				}
				n, err := readAnswer(r)
				if err != nil {
					t.err = err
					return
				}
				if n < 100 { // an error answer has 5 octets
					t.wrong++
				}
				if start.After(warm) {
					t.latencies = append(t.latencies, time.Since(start))
				}
			}
		})
	}
	wg.Wait()
	var all []time.Duration
	var out result
	for i := range tallies {
		if tallies[i].err != nil {
			return out, tallies[i].err
		}
		all = append(all, tallies[i].latencies...)
		out.wrong += tallies[i].wrong
	}
	slices.Sort(all)
	out.rate = float64(len(all)) / d.Seconds()
	out.p50, out.p99 = all[len(all)/2], all[len(all)*99/100]
	return out, nil
}

// readAnswer reads one response and returns the length of its body.
func readAnswer(r *bufio.Reader) (int, error) {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if first && string(line[9:12]) != "200" {
			return 0, fmt.Errorf("the server answered %q", line)
		}
		if len(line) == 2 {
			break
		}
		const name = "Content-Length: "
		if len(line) > len(name) && string(line[:len(name)]) == name {
			if length, err = strconv.Atoi(string(line[len(name) : len(line)-2])); err != nil {
				return 0, err
			}
		}
	}
	if length < 0 {
		return 0, errors.New("an answer without Content-Length")
	}
	_, err := io.CopyN(io.Discard, r, int64(length))
	return length, err
}
