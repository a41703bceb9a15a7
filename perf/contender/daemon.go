package contender

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"weft/api"
	"weft/catalog/mode"
	"weft/internal/ipnet"
	"weft/perf/testbed"
)

// exitUnsupported is the exit code of a weft that cannot do what it is asked on this machine.
const exitUnsupported = 3

// daemons is a mode of weft: one daemon on every node.
type daemons struct {
	mode  mode.Mode
	nodes []node
	mtu   int
}

type node struct {
	*testbed.Node
	process *testbed.Process
	client  *api.Client
}

// configTemplate is a node's weft.yaml; everything the lab does not need is left to the defaults. Masquerading is off: it
// brings connection tracking, which would cost weft's contenders alone.
var configTemplate = template.Must(template.New("weft.yaml").Parse(`node: {name: {{.Name}}}
network: {prefixes: [{{range $i, $p := .Network}}{{if $i}}, {{end}}"{{$p}}"{{end}}]{{with .VNI}}, vni: {{.}}{{end}}{{with .Port}}, port: {{.}}{{end}}}
mode: {{.Mode}}
{{- if .BGP}}
bgp: {as: 64512}
{{- end}}
{{- if ne .Queues 0}}
queues: {{.Queues}}
{{- end}}
{{- if ne .Cipher "none"}}
encryption: {cipher: {{.Cipher}}, key_file: {{printf "%q" .Key}}, psk_file: {{printf "%q" .PSK}}{{with .SealedPort}}, port: {{.}}{{end}}}
{{- end}}
cni: {masquerade: false}
control: {kind: static, static: {file: {{printf "%q" .Nodes}}}}
api: {socket: {{printf "%q" .Socket}}}
state_dir: {{printf "%q" .Dir}}
`))

// upDaemon starts one daemon a node and waits until each says that it is ready, and with BGP until each has learnt the others' prefixes.
func upDaemon(ctx context.Context, env Env, m mode.Mode, cipher string, bgp bool) (Overlay, error) {
	d := &daemons{mode: m}
	nodes := env.Bed.Here()
	dir := filepath.Dir(nodes[0].Dir)
	list := filepath.Join(dir, "nodes.yaml")
	if err := os.WriteFile(list, []byte(nodesYAML(env.Bed.Nodes, m)), 0o600); err != nil {
		return nil, fmt.Errorf("contender: %w", err)
	}
	psk := filepath.Join(dir, "psk")
	if cipher != "none" {
		// Known to everyone: it protects nothing but the lab's own traffic, inside one machine.
		secret := cmp.Or(env.Secret, "the lab's own secret")
		if err := os.WriteFile(psk, []byte(secret+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("contender: %w", err)
		}
	}
	plain, sealed := env.Port, uint16(0)
	if cipher != "none" && env.Port != 0 {
		plain, sealed = env.Port+1, env.Port // what is not sealed has no port open
	}
	for _, n := range nodes {
		socket := filepath.Join(n.Dir, "weft.sock")
		var text strings.Builder
		if err := configTemplate.Execute(&text, struct {
			*testbed.Node
			Network                               []netip.Prefix
			Mode, Cipher, Key, PSK, Nodes, Socket string
			Queues                                int
			BGP                                   bool
			VNI                                   uint32
			Port, SealedPort                      uint16
		}{n, env.Bed.Network, m.Name, cipher, filepath.Join(n.Dir, "key"), psk, list, socket, env.Queues, bgp, env.VNI, plain, sealed}); err != nil {
			return nil, fmt.Errorf("contender: write weft.yaml: %w", err)
		}
		file := filepath.Join(n.Dir, "weft.yaml")
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			return nil, fmt.Errorf("contender: %w", err)
		}
		command := []string{env.Weft, "daemon", "--config", file}
		if env.Fault != "" {
			command = append(command, "--fault", env.Fault)
		}
		if env.Outside != "" {
			command = append(command, "--underlay-netns", env.Outside)
		}
		p, err := n.Host.Start("weft-"+n.Name, filepath.Join(n.Dir, "daemon.log"), nil, command...)
		if err != nil {
			return nil, err
		}
		d.nodes = append(d.nodes, node{n, p, api.NewClient(socket)})
	}
	for _, n := range d.nodes {
		mtu, err := n.ready(ctx)
		if err != nil {
			return nil, err
		}
		if d.mtu == 0 || mtu < d.mtu {
			d.mtu = mtu
		}
		if bgp {
			if err := n.learnt(ctx, env.Bed.Nodes); err != nil {
				return nil, err
			}
		}
	}
	for _, n := range d.nodes {
		if err := n.attach(ctx, env.Bed, d.mtu); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// attach has the daemon attach the node's pod, as the CNI plugin asks for it.
func (n node) attach(ctx context.Context, bed *testbed.Bed, mtu int) error {
	q := api.AttachRequest{ContainerID: n.Pod.Name(), IfName: testbed.PodDevice, Netns: n.Pod.Path(), Network: "weftlab", MTU: mtu}
	for _, a := range n.PodAddrs {
		q.IPs = append(q.IPs, ipnet.Host(a))
	}
	pod, err := n.client.Attach(ctx, q)
	if err != nil {
		return fmt.Errorf("contender: attach the pod of %s: %w", n.process.Name, err)
	}
	return bed.Attached(n.Node, pod.HostInterface)
}

// nodesYAML is the file of `control: static`. The underlay is IPv4: with endpoints of both families
// the inner MTU would be that of the longer header. Without a tunnel there is no header, and IPv6
// needs next hops of its own.
//
// All nodes run the same mode, so all announce what it can do beyond the standard.
func nodesYAML(nodes []*testbed.Node, m mode.Mode) string {
	text := "nodes:\n"
	for _, n := range nodes {
		endpoints := n.Endpoints[:1]
		if m.Wire == mode.Direct {
			endpoints = n.Endpoints
		}
		text += fmt.Sprintf("  - {name: %s, endpoints: [%s], prefixes: [%s], features: [%s]}\n", n.Name, quoted(endpoints), quoted(n.Prefixes),
			strings.Join(m.Features, ", "))
	}
	return text
}

func quoted[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprintf("%q", v.String())
	}
	return strings.Join(texts, ", ")
}

// ready waits until the daemon has programmed its path, and returns the inner MTU.
func (n node) ready(ctx context.Context) (mtu int, err error) {
	for {
		s, err := n.client.Status(ctx)
		if err == nil && s.Ready {
			return s.InnerMTU, nil
		}
		if err == nil {
			err = errors.New(s.Reason)
		}
		select {
		case <-n.process.Done():
			return 0, n.ended()
		case <-ctx.Done():
			return 0, fmt.Errorf("contender: %s is not ready: %w: %w", n.process.Name, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// learnt waits until the others' prefixes have been learnt by BGP.
func (n node) learnt(ctx context.Context, all []*testbed.Node) error {
	want := 0
	for _, far := range all {
		if far != n.Node {
			want += len(far.Prefixes)
		}
	}
	for {
		b, err := n.client.BGP(ctx)
		if err == nil && len(b.Routes) == want {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("%d of %d prefixes were learnt: %+v", len(b.Routes), want, b.Sessions)
		}
		select {
		case <-n.process.Done():
			return n.ended()
		case <-ctx.Done():
			return fmt.Errorf("contender: %s learns by BGP: %w: %w", n.process.Name, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ended is why the daemon is no longer there.
func (n node) ended() error {
	err := n.process.Ended()
	var exit *testbed.ExitError
	if errors.As(err, &exit) && exit.Code == exitUnsupported {
		return &UnsupportedError{Reason: exit.Last}
	}
	return err
}

func (d *daemons) InnerMTU() int { return d.mtu }

func (d *daemons) Processes() []*testbed.Process {
	list := make([]*testbed.Process, len(d.nodes))
	for i, n := range d.nodes {
		list[i] = n.process
	}
	return list
}

func (d *daemons) Lanes(ctx context.Context) ([]Lane, error) {
	var all []Lane
	for _, n := range d.nodes {
		lanes, err := n.client.Lanes(ctx)
		if err != nil {
			return nil, fmt.Errorf("contender: lanes of %s: %w", n.process.Name, err)
		}
		for _, l := range lanes {
			lane := Lane{Node: n.Name, Name: l.Name, Received: l.Received + l.Copied, Sent: l.Sent, Drops: map[string]uint64{}}
			for _, stage := range l.Stages {
				lane.Stages = append(lane.Stages, Stage{Name: stage.Name, Packets: stage.Packets, Timed: stage.Timed, Nanos: stage.Nanos})
				for reason, count := range stage.Drops {
					lane.Drops[reason] += count
				}
			}
			all = append(all, lane)
		}
	}
	return all, nil
}

// Drops asks the daemons for the counters of AF_XDP sockets. The others that a daemon reports the lab reads
// from the kernel itself.
func (d *daemons) Drops(ctx context.Context) (Drops, error) {
	all := Drops{Kernel: map[string]uint64{}}
	if !d.mode.Uses(mode.AFXDP) {
		return all, nil
	}
	for _, n := range d.nodes {
		status, err := n.client.Status(ctx)
		if err != nil {
			return all, fmt.Errorf("contender: status of %s: %w", n.process.Name, err)
		}
		for name, count := range status.KernelDrops {
			if !strings.HasPrefix(name, "xdp-") && name != "neighbour-unresolved" {
				continue // a UDP socket's or a TUN device's
			}
			all.Kernel[name] += count
			if strings.HasPrefix(name, "xdp-rx-") || name == "xdp-tx-refused" {
				// A redirect that fails is the underlay's rx_dropped, a refused frame its tx_dropped. The inside's
				// counters have other names: its device is out of sight.
				all.AtVeth += count
			}
		}
	}
	lanes, err := d.Lanes(ctx)
	for _, l := range lanes {
		if strings.HasPrefix(l.Name, "out") && d.mode.Outside == mode.AFXDP {
			all.AtVeth += l.Drops["refused"]
		}
	}
	return all, err
}
