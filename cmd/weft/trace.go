package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
	"weft/packet"
)

// traceOptions is the command line of `weft trace`.
type traceOptions struct {
	sockets      [2]string // near and far
	src, dst     string
	proto        string
	sport, dport uint16
	size         int
	probe        bool
	filter       string
	for_         time.Duration
	count        int
}

// newTraceCommand is `weft trace`.
func newTraceCommand() *cobra.Command {
	var o traceOptions
	c := &cobra.Command{
		Use:   "trace (--src A --dst B [--probe] | --filter F)",
		Short: "A packet's way through kernel, lanes and stages, with the decision at each",
		Long: `With --src and --dst: what this node does with a packet from one address to the other, step by step.
The kernel is asked for its routes, neighbours and forwarding entries, the running route table for its
decision; what is computed instead, and what cannot be told, is marked so. With --far-socket the other
node's daemon adds its part; its socket can be brought here by ` + "`ssh -L`" + `. --probe then sends such a packet
and shows what the lanes of both did with it. Exit code 1 when the packet does not arrive.

With --filter: packets of pods as they pass the lanes, each with its steps, its peer and, where it died,
the reason. Nobody is slowed down for it: what comes faster than it is read is counted and left out.
Filters are in the manner of tcpdump: host ADDR, net PREFIX, port N, src and dst before these, tcp, udp, icmp,
icmp6, ip, ip6, arp, drop [REASON], with and, or, not and parentheses. "" is all.`,
		Example: "  weft trace --src 10.244.1.5 --dst 10.244.2.7 --proto udp --dport 53\n  weft trace --filter 'host 10.244.2.7 and drop' --for 10s",
		Args:    cobra.NoArgs,
	}
	socket, form := socketFlag(c), formatFlag(c)
	f := c.Flags()
	f.StringVar(&o.sockets[1], "far-socket", "", "the other node's daemon socket, to ask it for its part")
	f.StringVar(&o.src, "src", "", "inner source address")
	f.StringVar(&o.dst, "dst", "", "inner destination address")
	f.StringVar(&o.proto, "proto", "icmp", "tcp, udp, icmp or a protocol number")
	f.Uint16Var(&o.sport, "sport", 0, "source port")
	f.Uint16Var(&o.dport, "dport", 0, "destination port")
	f.IntVar(&o.size, "size", 64, "bytes of the inner IP packet")
	f.BoolVar(&o.probe, "probe", false, "send such a packet, and show what became of it")
	f.StringVar(&o.filter, "filter", "", "show packets that pass, chosen like this")
	f.DurationVar(&o.for_, "for", 10*time.Second, "look at packets for this long")
	f.IntVar(&o.count, "count", 20, "end after so many packets; 0 = only --for ends it")
	c.MarkFlagsMutuallyExclusive("filter", "src")
	c.MarkFlagsMutuallyExclusive("filter", "dst")
	c.MarkFlagsMutuallyExclusive("filter", "probe")
	c.MarkFlagsRequiredTogether("src", "dst")
	c.MarkFlagsOneRequired("filter", "src")
	c.RunE = func(c *cobra.Command, _ []string) error {
		o.sockets[0] = *socket
		if c.Flags().Changed("filter") {
			return watchPackets(c.Context(), o, printer(&plainWriter{to: c.OutOrStdout()}, *form))
		}
		q, err := o.question()
		if err != nil {
			return usageError{err}
		}
		return tracePath(c.Context(), o, q, &plainWriter{to: c.OutOrStdout()}, *form)
	}
	return c
}

func (o traceOptions) question() (q api.PathQuestion, err error) {
	if q.Src, err = netip.ParseAddr(o.src); err != nil {
		return q, fmt.Errorf("trace: --src: %w", err)
	}
	if q.Dst, err = netip.ParseAddr(o.dst); err != nil {
		return q, fmt.Errorf("trace: --dst: %w", err)
	}
	if q.Src.Is4() != q.Dst.Is4() {
		return q, errors.New("trace: --src and --dst are of different IP versions")
	}
	numbers := map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP, "icmp": packet.ProtoICMP, "icmp6": packet.ProtoICMPv6}
	n, known := numbers[o.proto]
	if !known {
		number, err := strconv.ParseUint(o.proto, 10, 8)
		if err != nil {
			return q, fmt.Errorf("trace: --proto %q: write tcp, udp, icmp or a number", o.proto)
		}
		n = uint8(number)
	}
	if n == packet.ProtoICMP && q.Dst.Is6() {
		n = packet.ProtoICMPv6
	}
	if o.size < 0 || o.size > 65535 {
		return q, fmt.Errorf("trace: --size %d: an IP packet has at most 65535 bytes", o.size)
	}
	q.Protocol, q.SPort, q.DPort, q.Size = n, o.sport, o.dport, o.size
	return q, nil
}

// printer prints packets as they come.
func printer(w io.Writer, f format) func(api.Traced) error {
	if f == asJSON { // one object a line: a stream has no end to close a list with
		enc := json.NewEncoder(w)
		return func(t api.Traced) error { return enc.Encode(t) }
	}
	return func(t api.Traced) error { return printTraced(w, t) }
}

var errEnough = errors.New("enough packets")

// watchPackets shows packets that pass the lanes of one node, or two.
func watchPackets(ctx context.Context, o traceOptions, show func(api.Traced) error) error {
	ctx, cancel := context.WithTimeout(ctx, o.for_)
	defer cancel()
	shown := 0
	emit := func(t api.Traced) error {
		if err := show(t); err != nil {
			return err
		}
		if shown++; shown == o.count {
			return errEnough
		}
		return nil
	}
	err := observe(ctx, o.sockets, o.filter, func() {}, emit)
	if errors.Is(err, errEnough) || errors.Is(ctx.Err(), context.DeadlineExceeded) && errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// observe follows packets on all sockets that are given; emit is called by one at a time, and ends all when it fails. started is
// called once all see packets.
func observe(ctx context.Context, sockets [2]string, filter string, started func(), emit func(api.Traced) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var all, ready sync.WaitGroup
	var once [2]sync.Once
	for i, s := range sockets {
		if s == "" {
			continue
		}
		ready.Add(1)
		all.Go(func() {
			client := api.NewClient(s)
			defer client.Close()
			err := client.Trace(ctx, filter, func() { once[i].Do(ready.Done) }, func(t api.Traced) error {
				mu.Lock()
				defer mu.Unlock()
				if ctx.Err() != nil {
					return ctx.Err()
				}
				err := emit(t)
				if err != nil {
					cancel(err)
				}
				return err
			})
			if err != nil {
				cancel(noLanes(err))
			}
			once[i].Do(ready.Done)
		})
	}
	ready.Wait()
	if ctx.Err() == nil {
		started()
	}
	all.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// noLanes gives what a mode cannot do its exit code.
func noLanes(err error) error {
	if errors.Is(err, api.ErrNoLanes) {
		return unsupportedError{err}
	}
	return err
}

// traceReport is the answer of `weft trace --src --dst`.
type traceReport struct {
	Paths []api.Path   `json:"paths"` // this node's, and the far one's where it was asked
	Far   string       `json:"far"`   // asked, or why it was not
	Probe *probeReport `json:"probe,omitempty"`
}

type probeReport struct {
	Sent    string       `json:"sent,omitempty"`
	Failed  string       `json:"failed,omitempty"` // why it was not sent
	Unseen  string       `json:"unseen,omitempty"` // why nothing can be seen of it
	Packets []api.Traced `json:"packets"`          // what the lanes did with it
}

// tracePath asks one node or two for the way of a packet.
func tracePath(ctx context.Context, o traceOptions, q api.PathQuestion, w io.Writer, f format) error {
	r := traceReport{Far: "asked"}
	for _, s := range o.sockets {
		if s == "" {
			continue
		}
		p, err := ask(ctx, s, func(c *api.Client, ctx context.Context) (api.Path, error) { return c.Path(ctx, q) })
		if err != nil {
			return err
		}
		r.Paths = append(r.Paths, p)
	}
	if len(r.Paths) == 1 {
		switch p := r.Paths[0]; {
		case p.Part == "out" && p.Next != "":
			r.Far = fmt.Sprintf("not asked: what %s does with it, run this there or give --far-socket", p.Next)
		case p.Part == "in":
			r.Far = "not asked: whether the sender's node sends it, run this there or give --far-socket"
		case p.Part == "local":
			r.Far = "there is none"
		default:
			r.Far = "not asked: the packet ends before it"
		}
	}
	if o.probe {
		p, err := sendProbe(ctx, o, q)
		if err != nil {
			return err
		}
		r.Probe = p
	}
	if f == asJSON {
		if err := writeJSON(w, r); err != nil {
			return err
		}
	} else if err := printReport(w, r); err != nil {
		return err
	}
	for _, p := range r.Paths {
		if !p.Arrives {
			last := p.Steps[len(p.Steps)-1]
			return fmt.Errorf("trace: the packet ends on %s, at %s", p.Node, last.Where)
		}
	}
	return nil
}

// probeWait is how long lanes get to show a probe.
const probeWait = time.Second

// sendProbe sends a packet and collects what the lanes did with it: at most one walk of each node.
func sendProbe(ctx context.Context, o traceOptions, q api.PathQuestion) (*probeReport, error) {
	ctx, cancel := context.WithTimeout(ctx, probeWait+10*time.Second)
	defer cancel()
	r := &probeReport{Packets: []api.Traced{}}
	chosen := fmt.Sprintf("src host %v and dst host %v and proto %d", q.Src, q.Dst, q.Protocol)
	if q.DPort != 0 {
		chosen += fmt.Sprintf(" and dst port %d", q.DPort)
	}
	want := 1
	if o.sockets[1] != "" {
		want = 2
	}
	probe := func() bool {
		sent, err := ask(ctx, o.sockets[0], func(c *api.Client, ctx context.Context) (string, error) { return c.Probe(ctx, q) })
		if r.Sent = sent; err != nil {
			r.Failed = err.Error()
		}
		return err == nil
	}
	err := observe(ctx, o.sockets, chosen, func() {
		if probe() {
			time.AfterFunc(probeWait, cancel)
		} else {
			cancel()
		}
	}, func(t api.Traced) error {
		r.Packets = append(r.Packets, t)
		if len(r.Packets) == want || t.Drop != "" {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, api.ErrNoLanes):
		r.Unseen = err.Error()
		probe()
	case err != nil && !errors.Is(err, errEnough) && !errors.Is(err, context.Canceled):
		return nil, err
	}
	return r, nil
}

func printReport(w io.Writer, r traceReport) error {
	for _, p := range r.Paths {
		fmt.Fprintf(w, "%s, mode %s, %s\n", p.Node, p.Mode, map[string]string{"out": "on the way out", "in": "on the way in", "local": "both ends here"}[p.Part])
		if err := show(w, asText, nil, func(w io.Writer) {
			for _, s := range p.Steps {
				row(w, "  "+s.Verdict, s.Where, "("+s.Basis+")", s.Found)
				if s.Remedy != "" {
					row(w, "", "", "", "→ "+s.Remedy)
				}
			}
		}); err != nil {
			return err
		}
	}
	if r.Far != "asked" {
		fmt.Fprintf(w, "far node: %s\n", r.Far)
	}
	if p := r.Probe; p != nil {
		for _, line := range []struct{ what, text string }{{"sent", p.Sent}, {"not sent", p.Failed}, {"not seen", p.Unseen}} {
			if line.text != "" {
				fmt.Fprintf(w, "probe %s: %s\n", line.what, line.text)
			}
		}
		if p.Sent != "" && p.Unseen == "" && len(p.Packets) == 0 {
			fmt.Fprintln(w, "probe: no lane has seen it: the kernel did not bring it there")
		}
		for _, t := range p.Packets {
			if err := printTraced(w, t); err != nil {
				return err
			}
		}
	}
	return nil
}

var protocolNames = map[uint8]string{packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp", packet.ProtoICMP: "icmp", packet.ProtoICMPv6: "icmp6"}

// printTraced prints a packet in two lines or three: which it is, what became of it where.
func printTraced(w io.Writer, t api.Traced) error {
	what := "a packet that was not unwrapped, from " + t.Src.String()
	switch {
	case t.Dst.IsValid():
		name, ok := protocolNames[t.Protocol]
		if !ok {
			name = "protocol " + strconv.Itoa(int(t.Protocol))
		}
		what = fmt.Sprintf("%s %v → %v", name, end(t.Src, t.SPort), end(t.Dst, t.DPort))
	case t.EtherType != 0:
		what = fmt.Sprintf("a frame of type %#04x", t.EtherType)
	}
	fmt.Fprintf(w, "%s %s %s: %s, %d bytes", t.Time.Format("15:04:05.000000"), t.Node, t.Lane, what, t.Length)
	if t.From.IsValid() {
		fmt.Fprintf(w, ", outer source %v", t.From)
	}
	if t.Endpoint.IsValid() {
		fmt.Fprintf(w, ", peer %s at %v (VNI %d, MTU %d)", t.Peer, t.Endpoint, t.VNI, t.MTU)
	}
	if t.Copy {
		fmt.Fprint(w, ", a copy of a flooded frame")
	}
	var steps []string
	for _, s := range t.Steps {
		text := s.Name
		if s.Length > 0 {
			text += " " + strconv.Itoa(s.Length)
		}
		steps = append(steps, text)
	}
	fate := "sent"
	if t.Drop != "" {
		fate = "DROPPED: " + t.Drop
		if t.Why != "" {
			fate += " (" + t.Why + ")"
		}
	}
	_, err := fmt.Fprintf(w, "\n    %s: %s\n", strings.Join(steps, " → "), fate)
	if err == nil && t.Lost > 0 {
		_, err = fmt.Fprintf(w, "    (%d more came too fast to be shown)\n", t.Lost)
	}
	return err
}

func end(a netip.Addr, port uint16) string {
	if port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}
