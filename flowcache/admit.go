package flowcache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/backend/status"
	"weft/bpf"
	"weft/hostnet"
)

// answer reads which flows may be admitted, until ctx ends.
func (c *Cache) answer(ctx context.Context, reader *ringbuf.Reader) {
	var r ringbuf.Record
	for ctx.Err() == nil {
		err := reader.ReadInto(&r)
		if errors.Is(err, ringbuf.ErrClosed) {
			return
		}
		if err != nil || len(r.RawSample) < int(unsafe.Sizeof(bpf.FlowKey{})) {
			c.o.Log.Error("the flow cache is not asked well", zap.Error(err))
			continue
		}
		var k bpf.FlowKey
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&k)), unsafe.Sizeof(k)), r.RawSample)
		c.consider(k)
	}
}

// consider admits a flow, or does not.
func (c *Cache) consider(k bpf.FlowKey) (why string) {
	var s bpf.FlowSighting
	if err := c.objects.Seen.Lookup(&k, &s); err != nil {
		return "it is not seen any more"
	}
	c.mu.Lock()
	gen, p := c.gen, c.forwarding
	why = c.closed(&s)
	c.mu.Unlock()
	if why != "" {
		return why
	}
	peer, why := judge(p, c.o, &k, &s)
	if why != "" {
		return why
	}
	f := flow{tuple: tuple(&k), peer: peer.Node, began: time.Now()}
	if f.tracked, why = c.tracked(f.tuple); why != "" {
		return why
	}
	if f.tracked != nil {
		if err := c.o.Host.KeepTracked(f.tuple, f.tracked.Timeout); err != nil {
			return err.Error()
		}
		f.kept = time.Now()
	}
	key := k
	key.Where = s.PodFrom
	f.back = reverse(k)
	f.back.Where = c.o.VNI

	c.mu.Lock()
	defer c.mu.Unlock()
	_, again := c.flows[key]
	switch {
	case c.gen != gen || c.forwarding != p: // something has changed meanwhile; it will be seen again
		return "something has changed"
	case !again && len(c.flows) >= most:
		return "there are too many flows"
	}
	out, in := c.remember(p, peer, &k, &s)
	c.continued(key, f.back, &out, &in)
	if err := errors.Join(c.objects.Ins.Put(&f.back, &in), c.objects.Outs.Put(&key, &out)); err != nil {
		_ = c.objects.Ins.Delete(&f.back)
		return err.Error()
	}
	c.flows[key] = f
	return ""
}

// closed says why nothing that was seen in the sighting's generation can be admitted. The caller holds c.mu.
func (c *Cache) closed(s *bpf.FlowSighting) string {
	link, known := c.podLinks[int(s.PodFrom)]
	switch {
	case c.off != "":
		return "the cache is off: " + c.off
	case !c.open:
		return "something has changed a moment ago"
	case s.From != c.gen || s.Left != c.gen || s.Arrived != c.gen || s.To != c.gen:
		return "it has not been seen both ways since the last change: " + missing(s, c.gen)
	case c.forwarding == nil || !known:
		return "its link is none that is watched"
	case link != "":
		return link
	}
	return ""
}

// missing names where a flow has not been seen.
func missing(s *bpf.FlowSighting, gen uint64) (text string) {
	for i, at := range []uint64{s.From, s.Left, s.Arrived, s.To} {
		if at != gen {
			if text != "" {
				text += ", "
			}
			text += []string{"from the pod", "to the peer", "from the peer", "to the pod"}[i]
		}
	}
	return text
}

// judge is the rule by which flows are admitted, as far as it is about what was seen and what the plan has: the same link and MAC both
// ways, to and from the peer that the other end belongs to, as that is to be reached.
func judge(p *peers, o Options, k *bpf.FlowKey, s *bpf.FlowSighting) (*status.Peer, string) {
	local, remote := address(k.Src), address(k.Dst)
	peer := p.owner(remote)
	out, in := &s.Out, &s.In
	switch {
	case s.PodFrom != s.PodTo || s.MacFrom != [6]uint8(s.MacTo[:6]):
		return nil, "it comes from another link or MAC than it goes to"
	case !slices.ContainsFunc(p.Prefixes, func(x netip.Prefix) bool { return x.Contains(local) }):
		return nil, fmt.Sprintf("%v is none of this node's addresses", local)
	case peer == nil:
		return nil, fmt.Sprintf("%v is no peer's", remote)
	case peer.Session != nil:
		return nil, "it is sealed"
	case address(out.Dst) != peer.Endpoint.Addr() || address(out.Src) != peer.Source || out.Dev != p.dev[peer.Device] || out.Dev == 0:
		return nil, fmt.Sprintf("it leaves from %v to %v by device %d, and peer %s is to be reached from %v at %v by %s", address(out.Src), address(out.Dst), out.Dev,
			peer.Node, peer.Source, peer.Endpoint.Addr(), peer.Device)
	case peer.Endpoint.Port() != o.Port || peer.VNI != o.VNI:
		return nil, fmt.Sprintf("peer %s has another port or network", peer.Node)
	case hardware(out.Dmac) != peer.MAC || out.Smac != p.MAC:
		return nil, fmt.Sprintf("it leaves in frames from %s to %s", hardware(out.Smac), hardware(out.Dmac))
	case address(in.Src) != peer.Endpoint.Addr() || address(in.Dst) != peer.Source:
		return nil, fmt.Sprintf("it comes from %v at %v, and peer %s is at %v", address(in.Src), address(in.Dst), peer.Node, peer.Endpoint.Addr())
	case in.Dmac != p.MAC:
		return nil, fmt.Sprintf("it comes in frames to %s", hardware(in.Dmac))
	case out.Df&^swapped(0x4000) != 0 || out.Ttl == 0:
		return nil, "its outer header is odd"
	}
	return peer, ""
}

// tracked asks connection tracking for a flow: nil where that is not in use.
func (c *Cache) tracked(t hostnet.Tuple) (*hostnet.Tracked, string) {
	known, err := c.o.Host.Tracked(t)
	if err != nil {
		return nil, err.Error()
	}
	if known == nil {
		if tracks, err := c.o.Host.Tracks(); err != nil || tracks {
			return nil, "connection tracking does not know it"
		}
		return nil, ""
	}
	if why := known.Plain(); why != "" {
		return nil, why
	}
	return known, ""
}

// remember makes of what was seen what the programs do. The caller holds c.mu.
func (c *Cache) remember(p *peers, peer *status.Peer, k *bpf.FlowKey, s *bpf.FlowSighting) (bpf.FlowOut, bpf.FlowIn) {
	number := c.numbers.number(peer.Node)
	out := bpf.FlowOut{Gen: c.gen, Used: now(), Dev: s.Out.Dev, Peer: number, Mtu: uint32(peer.MTU), V6: s.Out.V6, Dscp: s.Out.Dscp, Mac: s.MacFrom}
	in := bpf.FlowIn{Gen: c.gen, Used: now(), Dev: s.PodTo, Peer: number, Inner: s.In.Dmac, V6: s.In.V6, Src: s.In.Src, Dst: s.In.Dst}
	copy(in.Mac[:], s.MacTo[:])
	copy(out.Header[:], header(&s.Out, c.o))
	hop := peer.Endpoint.Addr()
	if peer.Router.IsValid() {
		hop = peer.Router
	}
	out.NhFamily = unix.AF_INET6
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&out.Nh)), unsafe.Sizeof(out.Nh))
	if hop.Is4() {
		out.NhFamily = unix.AF_INET
	}
	copy(raw, hop.WithZone("").AsSlice())
	return out, in
}

// header is what is in front of an inner packet: outer IP without length, identification, ECN and checksum; UDP without length and, as this
// mode sends it, without checksum; VXLAN (RFC 7348); the inner Ethernet header but for its type.
func header(o *bpf.FlowOuter, c Options) []byte {
	b := make([]byte, 0, 72)
	src, dst := address(o.Src), address(o.Dst)
	if o.V6 != 0 {
		b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(o.Tos&^3)<<20)
		b = append(b, 0, 0, unix.IPPROTO_UDP, o.Ttl)
	} else {
		b = append(b, 0x45, o.Tos&^3, 0, 0, 0, 0)
		b = binary.NativeEndian.AppendUint16(b, o.Df)
		b = append(b, o.Ttl, unix.IPPROTO_UDP, 0, 0)
	}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = binary.NativeEndian.AppendUint16(b, o.Sport)
	b = binary.BigEndian.AppendUint16(b, c.Port)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 0x08000000)
	b = binary.BigEndian.AppendUint32(b, c.VNI<<8)
	return append(append(b, o.Dmac[:]...), o.Smac[:]...)
}

// continued has a flow that is admitted anew go on counting.
func (c *Cache) continued(key, back bpf.FlowKey, out *bpf.FlowOut, in *bpf.FlowIn) {
	var o bpf.FlowOut
	if c.objects.Outs.Lookup(&key, &o) == nil {
		out.Packets, out.Bytes = o.Packets, o.Bytes
	}
	var i bpf.FlowIn
	if c.objects.Ins.Lookup(&back, &i) == nil {
		in.Packets, in.Bytes = i.Packets, i.Bytes
	}
}

// A flow leaves after this time without a packet. It is kept in connection tracking before a third of that one's time is over, and asked for
// there as often.
const (
	idle     = time.Minute
	keepMost = 20 * time.Second
)

// keep takes out what is not used or not known to connection tracking any more.
func (c *Cache) keep() {
	c.mu.Lock()
	gen := c.gen
	type entry struct {
		key bpf.FlowKey
		flow
	}
	var list []entry
	for k, f := range c.flows {
		list = append(list, entry{k, f})
	}
	c.mu.Unlock()
	clock := now()
	for _, e := range list {
		used, there := c.used(e.key, e.back)
		age := time.Duration(clock - min(clock, used))
		f, why := e.flow, ""
		switch {
		case !there:
			why = "it has ended"
		case age > idle:
			why = "it is not used"
		case f.tracked != nil && time.Since(f.kept) >= min(keepMost, f.tracked.Timeout/3) && age < time.Since(f.kept):
			why = c.keepTracked(&f)
		default:
			continue
		}
		c.mu.Lock()
		if _, still := c.flows[e.key]; still && c.gen == gen {
			if why == "" {
				c.flows[e.key] = f
			} else {
				delete(c.flows, e.key)
				_ = c.objects.Outs.Delete(&e.key)
				_ = c.objects.Ins.Delete(&e.back)
			}
		}
		c.mu.Unlock()
	}
}

// keepTracked tells connection tracking that a flow lives, or says why it is not to be cached any more.
func (c *Cache) keepTracked(f *flow) string {
	known, why := c.tracked(f.tuple)
	switch {
	case why != "":
		return why
	case known == nil || known.Mark != f.tracked.Mark:
		return "connection tracking has it otherwise"
	}
	if err := c.o.Host.KeepTracked(f.tuple, f.tracked.Timeout); err != nil {
		return err.Error()
	}
	f.kept = time.Now()
	return ""
}

// used is when a flow's last packet was, in ns of CLOCK_MONOTONIC, and whether both its directions are there.
func (c *Cache) used(key, back bpf.FlowKey) (uint64, bool) {
	var o bpf.FlowOut
	var i bpf.FlowIn
	if errors.Is(c.objects.Outs.Lookup(&key, &o), ebpf.ErrKeyNotExist) || errors.Is(c.objects.Ins.Lookup(&back, &i), ebpf.ErrKeyNotExist) {
		return 0, false
	}
	return max(o.Used, i.Used), true
}

func now() uint64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &t) // it exists
	return uint64(t.Nano())
}

func address(b [16]uint8) netip.Addr { return netip.AddrFrom16(b).Unmap() }

func hardware(b [6]uint8) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

// swapped is a number of the network's byte order as the programs have it.
func swapped(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func reverse(k bpf.FlowKey) bpf.FlowKey {
	k.Src, k.Dst, k.Sport, k.Dport = k.Dst, k.Src, k.Dport, k.Sport
	return k
}

func tuple(k *bpf.FlowKey) hostnet.Tuple {
	return hostnet.Tuple{Protocol: k.Proto, Src: netip.AddrPortFrom(address(k.Src), swapped(k.Sport)), Dst: netip.AddrPortFrom(address(k.Dst), swapped(k.Dport))}
}
