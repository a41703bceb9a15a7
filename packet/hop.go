package packet

import (
	"net/netip"
	"sync/atomic"
)

// Hop is where a packet goes next, or whom it came from: who that is, and how it gets there. Immutable once published; many
// packets point at one Hop.
type Hop struct {
	Peer Peer
	Path *Path // nil where there is nothing to send to: this node itself, or a peer that is only known to have sent something
}

// Peer is who: what is true of a node on whichever path it is reached.
type Peer struct {
	ID  uint32  // dense number of the peer, stable while the node lives; stages index by it
	VNI uint32  // 24 bits
	MAC [6]byte // the peer's VTEP MAC: inner destination MAC on L3 ports
	RCO bool    // the peer announced remote checksum offload: sums may be left to it
}

// Self is the Peer.ID of this node: the route table holds our own prefixes under it.
const Self = ^uint32(0)

// Path is how a peer is reached. Several hops may share one. Nothing of it ever changes but the MTU.
//
// What is learnt of a path's MTU while packets flow (the kernel's route got another one, a router in the middle said so, a send was
// refused) reaches the lanes by SetMTU on the Path that is published already: from their next run of packets on, whatever is larger
// dies as TooBig and is answered with this MTU. No table is built for that. Whoever builds the next table puts the same Path into
// it, or one made with the newest MTU.
type Path struct {
	Src netip.Addr     // ours, outer source; invalid = the kernel chooses it
	Dst netip.AddrPort // the peer's tunnel endpoint, outer destination
	Way uint8          // which way out of a lane it is, where lanes have several (dataplane.LaneConfig.Ways)

	mtu *atomic.Int64 // one with all paths that To made of this one
}

// NewPath makes a path whose largest inner IP packet has mtu bytes.
func NewPath(src netip.Addr, dst netip.AddrPort, mtu int) *Path {
	p := &Path{Src: src, Dst: dst, mtu: new(atomic.Int64)}
	p.SetMTU(mtu)
	return p
}

// MTU is the largest inner IP packet that the path carries, bytes: what InnerMTU makes of the outer one.
func (p *Path) MTU() int { return int(p.mtu.Load()) }

// SetMTU says that it is another from now on. Anybody may call it at any time; the last one counts. It is for the one who knows all
// of why a path is narrow, and so also when it is wide again.
func (p *Path) SetMTU(mtu int) { p.mtu.Store(int64(mtu)) }

// To returns the path to another endpoint of the same peer: one that has moved, or listens at two ports. Both have one MTU for ever:
// packets are judged by the path in the table, and answered by the one that they were sent on.
func (p *Path) To(dst netip.AddrPort) *Path {
	return &Path{Src: p.Src, Dst: dst, Way: p.Way, mtu: p.mtu}
}

// Dst is the tunnel endpoint that a hop leads to; the zero AddrPort if there is none. The Hop may be nil.
func (h *Hop) Dst() netip.AddrPort {
	if h == nil || h.Path == nil {
		return netip.AddrPort{}
	}
	return h.Path.Dst
}
