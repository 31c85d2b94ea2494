package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A fault is something that goes wrong for a while.
type fault struct {
	name string
	// network says that it needs namespaces.
	network bool
	// begin does it and end mends it. begin may take long where the fault is a thing that
	// is done, as a restart is; then there is no end.
	begin func(context.Context) error
	end   func(context.Context) error
}

// choose returns one of the nodes of a role.
func (s *stack) choose(r *rand.Rand, role string) *node {
	nodes := s.of(role)
	return nodes[r.IntN(len(nodes))]
}

// faults returns the catalogue; which node is hit is decided by r.
func (s *stack) faults(r *rand.Rand) []fault {
	var all []fault
	for _, role := range []string{"gateway", "signer", "presigner", "responder", "nats", "postgres", "redis"} {
		all = append(all, s.killed(s.choose(r, role)), s.frozen(s.choose(r, role)))
	}
	gateway, signer, broker := s.choose(r, "gateway"), s.choose(r, "signer"), s.choose(r, "nats")
	postgres, redis := s.byName["postgres"], s.byName["redis"]
	all = append(all,
		s.cut(signer, postgres), s.lost(signer, postgres), s.lost(postgres, s.choose(r, "signer")),
		s.cut(gateway, s.of("nats")...), s.lost(s.choose(r, "gateway"), postgres),
		s.cut(s.choose(r, "presigner"), redis), s.lost(s.choose(r, "responder"), redis),
		s.unplugged(broker), s.slowed(postgres), s.slowed(s.choose(r, "nats")), s.slowed(s.choose(r, "signer")),
		s.fullDisk(), s.skewed(s.choose(r, "signer"), 10*time.Minute), s.skewed(s.choose(r, "signer"), -10*time.Minute),
		s.moreSigners(), s.fewerSigners(s.choose(r, "signer")), s.rolling(),
	)
	return all
}

func (s *stack) killed(n *node) fault {
	return fault{name: "kill " + n.name, begin: func(context.Context) error { return n.kill() }, end: func(context.Context) error { n.revive(); return nil }}
}

func (s *stack) frozen(n *node) fault {
	return fault{name: "freeze " + n.name, begin: func(context.Context) error { return n.freeze() }, end: func(context.Context) error { return n.thaw() }}
}

func names(nodes []*node) string {
	var all []string
	for _, n := range nodes {
		all = append(all, n.name)
	}
	return strings.Join(all, ",")
}

// cut loses what two sides send to each other.
func (s *stack) cut(a *node, b ...*node) fault {
	return fault{name: "cut " + a.name + " <-> " + names(b), network: true,
		begin: func(ctx context.Context) error {
			for _, n := range b {
				if err := s.net.deafen(ctx, n, a); err != nil {
					return err
				}
			}
			return s.net.deafen(ctx, a, b...)
		},
		end: func(ctx context.Context) error {
			for _, n := range b {
				if err := s.net.hear(ctx, n, a); err != nil {
					return err
				}
			}
			return s.net.hear(ctx, a, b...)
		}}
}

// lost loses what a sends to b; what b sends arrives.
func (s *stack) lost(a, b *node) fault {
	return fault{name: "cut " + a.name + " -> " + b.name, network: true,
		begin: func(ctx context.Context) error { return s.net.deafen(ctx, a, b) },
		end:   func(ctx context.Context) error { return s.net.hear(ctx, a, b) }}
}

func (s *stack) unplugged(n *node) fault {
	return fault{name: "unplug " + n.name, network: true,
		begin: func(ctx context.Context) error { return s.net.unplug(ctx, n) },
		end:   func(ctx context.Context) error { return s.net.plug(ctx, n) }}
}

func (s *stack) slowed(n *node) fault {
	return fault{name: "slow " + n.name, network: true,
		begin: func(ctx context.Context) error { return s.net.slow(ctx, n) },
		end:   func(ctx context.Context) error { return s.net.fast(ctx, n) }}
}

// fullDisk fills the ledger's file system.
func (s *stack) fullDisk() fault {
	return fault{name: "fill the ledger's disk", network: true,
		begin: func(context.Context) error {
			f, err := os.Create(s.ballast())
			if err != nil {
				return err
			}
			defer f.Close()
			block := make([]byte, 1<<20)
			for {
				if _, err := f.Write(block); err != nil {
					if len(block) > 4096 {
						block = block[:len(block)/16]
						continue
					}
					return nil // ENOSPC is what was wanted
				}
			}
		},
		end: func(context.Context) error { return os.Remove(s.ballast()) }}
}

// skewed starts a signer again with a clock that is wrong.
func (s *stack) skewed(n *node, by time.Duration) fault {
	again := func(offset time.Duration) error {
		s.settings[n.name]["clock_offset"] = offset.String()
		if err := s.write(n.name); err != nil {
			return err
		}
		err := n.stop()
		n.revive()
		return err
	}
	return fault{name: fmt.Sprintf("skew %s by %s", n.name, by),
		begin: func(context.Context) error { return again(by) },
		end:   func(context.Context) error { return again(0) }}
}

func (s *stack) moreSigners() fault {
	n := s.byName[spare]
	return fault{name: "a signer more, and less",
		begin: func(ctx context.Context) error {
			n.revive()
			return s.await(ctx, n.name, func() error {
				if err := s.byNameReady(n.name); err != nil {
					return err
				}
				return n.ready(ctx)
			})
		},
		end: func(context.Context) error { return n.stop() }}
}

func (s *stack) fewerSigners(n *node) fault {
	return fault{name: "a signer less (" + n.name + "), and more",
		begin: func(context.Context) error { return n.stop() },
		end:   func(context.Context) error { n.revive(); return nil }}
}

// rolling restarts every role, one process after the other, each when the one before is
// ready again.
func (s *stack) rolling() fault {
	return fault{name: "rolling restart of all roles", begin: func(ctx context.Context) error {
		for _, role := range []string{"maintenance", "responder", "presigner", "signer", "gateway"} {
			for _, n := range s.of(role) {
				if err := n.stop(); err != nil {
					return err
				}
				old := n.process()
				n.revive()
				if err := s.await(ctx, n.name, func() error {
					if n.process() == old {
						return fmt.Errorf("%s has not started again", n.name)
					}
					return n.ready(ctx)
				}); err != nil {
					return err
				}
			}
		}
		return nil
	}}
}

// shuffle puts the faults in an order that the seed decides, and leaves out those that
// this stack cannot make or that the filter does not name.
func (s *stack) shuffle(r *rand.Rand, filter []string) []fault {
	all := slices.DeleteFunc(s.faults(r), func(f fault) bool {
		return (f.network && s.net.plain) || (len(filter) > 0 && !slices.ContainsFunc(filter, func(part string) bool { return strings.Contains(f.name, part) }))
	})
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// wake continues whatever is still frozen, so that it can be stopped.
func (s *stack) wake() {
	for _, n := range s.nodes {
		_ = n.all(syscall.SIGCONT)
	}
}
