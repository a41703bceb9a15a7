package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"weft/api"
	"weft/dataplane"
	"weft/insight/filter"
	"weft/insight/trace"
	"weft/node/policies"
	"weft/packet"
)

var _ api.Tracer = (*Daemon)(nil)

// traceEvery is how often the lanes' rings are emptied.
const traceEvery = 10 * time.Millisecond

// maxDenied is how many packets wait for the reader that policies denied.
const maxDenied = 256

// Trace implements api.Tracer.
func (d *Daemon) Trace(ctx context.Context, text string, started func(), emit func(api.Traced) error) error {
	f, err := filter.Parse(text)
	if err != nil {
		return err
	}
	b := d.backend.Lanes()
	if b == nil {
		return fmt.Errorf("trace: %w to see packets in: the kernel forwards them in mode %s: ask for a way with --src and --dst, or use tcpdump", api.ErrNoLanes, d.cfg.Mode.Name)
	}
	var lanes []string
	for _, l := range b.LaneStats() {
		lanes = append(lanes, l.Name)
	}
	r := trace.NewRecorder(f, lanes)
	stop := b.Observe(r)
	defer stop()
	denied := make(chan api.Traced, maxDenied)
	if d.policies != nil {
		defer d.policies.Watch(func(p policies.DeniedPacket) {
			whole := packet.Whole(p.Packet)
			if v := filter.Look(whole, packet.IP, packet.PolicyDenied); !f.Match(&v) {
				return
			}
			k := trace.ReadKey(whole, 0)
			t := api.Traced{Time: time.Now(), Node: d.cfg.Node.Name, Lane: "policy", Direction: dataplane.Out.String(), Src: k.Src, Dst: k.Dst, EtherType: k.EtherType,
				Protocol: k.Protocol, SPort: k.SPort, DPort: k.DPort, Length: packet.TotalLen(p.Packet), Steps: []api.TracedStep{{Name: "policy"}},
				Drop: packet.PolicyDenied.String(), Why: p.Why}
			if p.In {
				t.Direction = dataplane.In.String()
			}
			select {
			case denied <- t:
			default: // the table shows some only
			}
		})()
	}
	started()
	tick := time.NewTicker(traceEvery)
	defer tick.Stop()
	var walks []trace.Walk
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-denied:
			if err := emit(t); err != nil {
				return err
			}
			continue
		case <-tick.C:
		}
		if walks = r.Take(walks[:0]); len(walks) == 0 {
			continue
		}
		names := map[netip.Addr]string{} // of peers, by endpoint
		for _, h := range d.backend.Status().Hops {
			names[h.Endpoint.Addr()] = h.Node
		}
		for i := range walks {
			if err := emit(d.traced(&walks[i], names, r.Lost())); err != nil {
				return err
			}
		}
	}
}

func (d *Daemon) traced(w *trace.Walk, names map[netip.Addr]string, lost uint64) api.Traced {
	t := api.Traced{Time: w.Time, Node: d.cfg.Node.Name, Lane: w.Lane, Direction: w.Direction.String(), Copy: w.Copy, Lost: lost,
		Src: w.Key.Src, Dst: w.Key.Dst, EtherType: w.Key.EtherType, Protocol: w.Key.Protocol, SPort: w.Key.SPort, DPort: w.Key.DPort, Length: w.Key.Length,
		From: w.From, VNI: w.Hop.Peer.VNI}
	if path := w.Hop.Path; path != nil {
		t.Endpoint, t.MTU, t.Peer = path.Dst, path.MTU(), names[path.Dst.Addr()]
	}
	for _, s := range w.Steps[:w.N] {
		t.Steps = append(t.Steps, api.TracedStep{Name: s.Name, Length: s.Length})
	}
	if w.Drop != packet.Alive {
		t.Drop = w.Drop.String()
	}
	return t
}

// Path implements api.Tracer.
func (d *Daemon) Path(q api.PathQuestion) (api.Path, error) {
	state, _ := d.look()
	if state == nil {
		return api.Path{}, errors.New("trace: the control source has not spoken yet: see `weft status`")
	}
	n := trace.Node{State: state, Status: d.backend.Status(), Mode: d.cfg.Mode, Host: d.host, Masquerade: d.cfg.CNI.Masquerade}
	forwarded := d.probe.Verdict()
	n.Stopped, n.StoppedAcross = forwarded.Within, forwarded.Across
	if d.policies != nil {
		n.Policy = d.policiesOn
	}
	if b := d.backend.Lanes(); b != nil {
		n.Decide = b.Decide
		n.Stages = map[dataplane.Direction][]string{}
		for _, l := range b.LaneStats() {
			if n.Stages[l.Direction] != nil {
				continue // all lanes of a direction have the same
			}
			for _, s := range l.Stages {
				n.Stages[l.Direction] = append(n.Stages[l.Direction], s.Name)
			}
		}
	}
	return trace.Explain(n, q)
}

// Probe implements api.Tracer.
func (d *Daemon) Probe(q api.PathQuestion) (string, error) {
	q = trace.Complete(q)
	if !q.Src.IsValid() || q.Src.Is4() != q.Dst.Is4() {
		return "", errors.New("trace: give a source and a destination of one IP version")
	}
	ip := trace.Make(q)
	fam, to := unix.AF_INET, unix.Sockaddr(nil)
	if q.Dst.Is4() {
		to = &unix.SockaddrInet4{Addr: q.Dst.As4()}
	} else {
		fam, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: q.Dst.As16()}
	}
	fd, err := unix.Socket(fam, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // the header is ours, see raw(7)
	if err != nil {
		return "", fmt.Errorf("trace: open a raw socket: %w: grant CAP_NET_RAW", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, ip, unix.MSG_DONTWAIT, to); err != nil {
		return "", fmt.Errorf("trace: the kernel does not send the probe: %w", err)
	}
	return fmt.Sprintf("%d bytes from %v to %v, protocol %d, made by %s's kernel: they pass its hook output where a pod's pass forward", len(ip), q.Src, q.Dst, q.Protocol, d.cfg.Node.Name), nil
}
