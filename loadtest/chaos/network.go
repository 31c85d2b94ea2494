package chaos

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

const bridge = "chaos0"

// A network is where the nodes live: a bridge with a namespace for each node, or, in
// plain form, addresses of the loopback network, which cannot be cut.
type network struct {
	prefix string // of the addresses, "10.77.0."
	plain  bool
}

// hub is the last octet of our own address.
const hub = 254

func (n *network) address(i int) string { return fmt.Sprintf("%s%d", n.prefix, i) }

// open makes the bridge.
func (n *network) open(ctx context.Context) error {
	if n.plain {
		return nil
	}
	return run(ctx,
		"ip link set lo up",
		"ip link add "+bridge+" type bridge",
		fmt.Sprintf("ip addr add %s/24 dev %s", n.address(hub), bridge),
		"ip link set "+bridge+" up",
	)
}

// add makes the namespace of a node and plugs it in.
func (n *network) add(ctx context.Context, node *node) error {
	if n.plain {
		return nil
	}
	node.namespace = "/run/netns/" + node.name
	return run(ctx,
		"ip netns add "+node.name,
		fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s", node.port(), node.name),
		fmt.Sprintf("ip link set %s master %s up", node.port(), bridge),
		fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", node.name, node.ip),
		fmt.Sprintf("ip -n %s link set eth0 up", node.name),
		fmt.Sprintf("ip -n %s link set lo up", node.name),
	)
}

// nowhere is a hardware address that no node has: what is sent there is lost without a
// word, as by a cable that is cut.
const nowhere = "02:00:00:00:de:ad"

// deafen loses what from sends to the nodes given; what they send arrives.
func (n *network) deafen(ctx context.Context, from *node, to ...*node) error {
	var commands []string
	for _, t := range to {
		commands = append(commands, fmt.Sprintf("ip -n %s neigh replace %s lladdr %s dev eth0 nud permanent", from.name, t.ip, nowhere))
	}
	return run(ctx, commands...)
}

// hear ends deafen.
func (n *network) hear(ctx context.Context, from *node, to ...*node) error {
	var commands []string
	for _, t := range to {
		commands = append(commands, fmt.Sprintf("ip -n %s neigh del %s dev eth0", from.name, t.ip))
	}
	return run(ctx, commands...)
}

// unplug takes a node off the network; plug puts it back.
func (n *network) unplug(ctx context.Context, node *node) error {
	return run(ctx, "ip link set "+node.port()+" down")
}

func (n *network) plug(ctx context.Context, node *node) error {
	return run(ctx, "ip link set "+node.port()+" up")
}

// slow delays what a node receives by 100 ms where the kernel can, and else gives it a
// line of 2 Mbit/s.
func (n *network) slow(ctx context.Context, node *node) error {
	if run(ctx, "tc qdisc replace dev "+node.port()+" root netem delay 100ms 20ms") == nil {
		return nil
	}
	return run(ctx, "tc qdisc replace dev "+node.port()+" root tbf rate 2mbit burst 16kb latency 200ms")
}

func (n *network) fast(ctx context.Context, node *node) error {
	return run(ctx, "tc qdisc del dev "+node.port()+" root")
}

// run runs commands of words without quotes, one after the other.
func run(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		words := strings.Fields(c)
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
