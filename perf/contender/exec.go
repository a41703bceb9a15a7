package contender

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/perf/testbed"
)

// execPrefix is what a contender's name begins with that is a program: exec:FILE.
const execPrefix = "exec:"

// execPatience bounds what a program may take for verify, addresses and down.
const execPatience = 10 * time.Second

// executed is a contender of anybody's own: one program, run on every node for each step of the protocol that
// docs/reference.md describes ("Your own contender").
type executed struct {
	file  string
	nodes []*testbed.Node
	env   map[*testbed.Node][]string
	up    []*testbed.Process // that stay, one a node at most
	mtu   int
}

// execContender is the contender exec:FILE. Without a slash FILE is in the current folder: PATH is not searched.
func execContender(name string) (Contender, error) {
	file := strings.TrimPrefix(name, execPrefix)
	if file == "" {
		return Contender{}, fmt.Errorf("contender %q: name a program behind the colon", name)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return Contender{}, fmt.Errorf("contender %q: %w", name, err)
	}
	return Contender{
		Name: name, About: "a program that follows the protocol", Cipher: "none", Super: true, // nobody knows
		Needs: func() error { return executable(path) },
		Up:    func(ctx context.Context, env Env) (Overlay, error) { return upExec(ctx, env, path) },
	}, nil
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: name a program that is there", err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not a program: chmod +x it", path)
	}
	return nil
}

// upExec runs verify on every node, then up on every node, then addresses on every node. When one fails, down is run on
// all that were brought up.
func upExec(ctx context.Context, env Env, file string) (_ Overlay, err error) {
	x := &executed{file: file, env: map[*testbed.Node][]string{}}
	for _, n := range env.Bed.Nodes {
		x.env[n] = execEnv(env.Bed, n)
		if _, err := x.step(ctx, n, "verify"); err != nil {
			var exit *testbed.ExitError
			if errors.As(err, &exit) && exit.Code == exitUnsupported {
				return nil, &UnsupportedError{Reason: exit.Last}
			}
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.Down())
		}
	}()
	for _, n := range env.Bed.Nodes {
		x.nodes = append(x.nodes, n) // down is for what failed halfway, too
		if err := x.start(ctx, n); err != nil {
			return nil, err
		}
	}
	for _, n := range env.Bed.Nodes {
		if err := x.addresses(ctx, env.Bed, n); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// execEnv is what a program is told about the node it runs on, beside the lab's own environment.
func execEnv(bed *testbed.Bed, n *testbed.Node) []string {
	var peers strings.Builder
	for i, far := range bed.Nodes {
		if far != n {
			fmt.Fprintf(&peers, "%s %d %s %s\n", far.Name, i+1, spaced(far.Endpoints), spaced(far.Prefixes))
		}
	}
	return []string{
		"WEFT_NODE=" + n.Name,
		"WEFT_INDEX=" + strconv.Itoa(slices.Index(bed.Nodes, n)+1),
		"WEFT_UNDERLAY=" + testbed.Underlay,
		"WEFT_MTU=" + strconv.Itoa(bed.MTU),
		"WEFT_ENDPOINTS=" + spaced(n.Endpoints),
		"WEFT_PREFIXES=" + spaced(n.Prefixes),
		"WEFT_PEERS=" + peers.String(),
		"WEFT_DIR=" + n.Dir,
		"WEFT_SHARED=" + filepath.Dir(n.Dir),
	}
}

func spaced[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, " ")
}

// argv runs the program for a step with its environment: env(1) passes it on, since a namespace's thread starts processes with the lab's.
func (x *executed) argv(n *testbed.Node, step string) []string {
	return append(append([]string{"env"}, x.env[n]...), x.file, step)
}

func (x *executed) log(n *testbed.Node) string { return filepath.Join(n.Dir, "exec.log") }

// step runs one step to its end and returns what it wrote to standard output.
func (x *executed) step(ctx context.Context, n *testbed.Node, step string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execPatience)
	defer cancel()
	var out bytes.Buffer
	p, err := n.Host.Start(step+"-"+n.Name, x.log(n), &out, x.argv(n, step)...)
	if err != nil {
		return "", err
	}
	if err := p.Wait(ctx); err != nil {
		return "", fmt.Errorf("contender: %s %s on node %s: %w", x.file, step, n.Name, err)
	}
	return out.String(), nil
}

// start brings a node up: the program ends well and silently once the kernel carries packets, or says so on its standard
// output and stays.
func (x *executed) start(ctx context.Context, n *testbed.Node) error {
	p, err := n.Host.StartReady(ctx, filepath.Base(x.file)+"-"+n.Name, x.log(n), x.argv(n, "up")...)
	var exit *testbed.ExitError
	switch {
	case errors.As(err, &exit) && exit.Code == 0:
		return nil
	case err != nil:
		return fmt.Errorf("contender: %s up on node %s: %w", x.file, n.Name, err)
	}
	x.up = append(x.up, p)
	return nil
}

// addresses asks what a node carries: a line "mtu N", and a line "prefix P" for each of the node's own prefixes that the others reach.
func (x *executed) addresses(ctx context.Context, bed *testbed.Bed, n *testbed.Node) error {
	out, err := x.step(ctx, n, "addresses")
	if err != nil {
		return err
	}
	a, err := parseAddresses(out)
	if err != nil {
		return fmt.Errorf("contender: %s addresses on node %s: %w", x.file, n.Name, err)
	}
	if a.mtu > bed.MTU {
		return fmt.Errorf("contender: %s addresses on node %s: mtu %d is more than the underlay's %d", x.file, n.Name, a.mtu, bed.MTU)
	}
	if x.mtu == 0 || a.mtu < x.mtu {
		x.mtu = a.mtu
	}
	for i, p := range n.Prefixes[:len(bed.Network)] {
		if slices.Contains(a.prefixes, p) {
			continue
		}
		if i == 0 {
			return fmt.Errorf("contender: %s addresses on node %s: no line \"prefix %s\": the lab needs IPv4", x.file, n.Name, p)
		}
		bed.OnlyIPv4()
	}
	return nil
}

// carried is the answer to addresses.
type carried struct {
	mtu      int
	prefixes []netip.Prefix
}

// parseAddresses reads the lines. Unknown ones are errors: the program is somebody's own, and a misspelt word should not go unnoticed.
func parseAddresses(text string) (c carried, err error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case len(fields) == 2 && fields[0] == "mtu":
			if c.mtu, err = strconv.Atoi(fields[1]); err != nil || c.mtu < 576 || c.mtu > 65535 {
				return carried{}, fmt.Errorf("%q: write mtu and a number from 576 to 65535", strings.TrimSpace(line))
			}
		case len(fields) == 2 && fields[0] == "prefix":
			p, err := netip.ParsePrefix(fields[1])
			if err != nil {
				return carried{}, fmt.Errorf("%q: write prefix and one of WEFT_PREFIXES", strings.TrimSpace(line))
			}
			c.prefixes = append(c.prefixes, p)
		default:
			return carried{}, fmt.Errorf("%q: write lines \"mtu N\" and \"prefix P\"", strings.TrimSpace(line))
		}
	}
	if c.mtu == 0 {
		return carried{}, errors.New("no line \"mtu N\": write the largest packet a pod may send")
	}
	return c, nil
}

// Down ends what stays and runs down on every node that was brought up. The testbed kills what is then left in its namespaces.
func (x *executed) Down() error {
	var errs []error
	for _, p := range x.up {
		p.Stop(context.Background())
	}
	for _, n := range x.nodes {
		_, err := x.step(context.Background(), n, "down")
		errs = append(errs, err)
	}
	x.up, x.nodes = nil, nil
	return errors.Join(errs...)
}

func (x *executed) InnerMTU() int                       { return x.mtu }
func (x *executed) Processes() []*testbed.Process       { return x.up }
func (*executed) Lanes(context.Context) ([]Lane, error) { return nil, nil }
func (*executed) Drops(context.Context) (Drops, error)  { return Drops{}, nil }
