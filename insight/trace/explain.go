package trace

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weft/api"
	"weft/backend"
	"weft/catalog/mode"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet"
	"weft/packet"
)

// Node is what Explain asks about: one node as it is now.
type Node struct {
	State  *control.State
	Status backend.Status
	Mode   mode.Mode
	Host   *hostnet.Host

	// What this node is known to stop pods' packets by, and the remedy; "" = nothing. Across: those between pods and other nodes.
	Stopped, StoppedAcross string

	Masquerade bool // what is none of the overlay's enters it under this node's address

	// Policy says what the network policies in force say of a packet that this node forwards, or with node that it sends or gets itself; nil
	// where there are none.
	Policy func(q api.PathQuestion, node bool) []PolicyVerdict

	// Decide is the running stage's own decision (userspace.Backend.Decide); nil where the kernel forwards.
	Decide func(d dataplane.Direction, ip []byte, peer string, from netip.AddrPort) (hop *packet.Hop, drop packet.Drop, ok bool)
	// Stages are a lane's steps by direction, as in `weft stages`; empty where the kernel forwards.
	Stages map[dataplane.Direction][]string
}

// PolicyVerdict is what the policies of one end say.
type PolicyVerdict struct {
	Denied bool
	Text   string // whose verdict it is: tier, policy and rule
	Remedy string
}

const (
	pass = "pass"
	drop = "drop"
	note = "note"

	asked    = "asked"    // the kernel, or the stage that runs
	computed = "computed" // from what the cluster's state says
)

// inside is the userspace modes' device.
const inside = "weft0"

// Explain says what this node does with a packet that its pod, or its kernel, sends, or that comes in for one of its pods.
func Explain(n Node, q api.PathQuestion) (api.Path, error) {
	q = Complete(q)
	if !q.Src.IsValid() || q.Src.Is4() != q.Dst.Is4() {
		return api.Path{}, errors.New("trace: give a source and a destination of one IP version")
	}
	e := &explanation{Node: n, q: q, path: api.Path{Node: n.State.Self.Name, Mode: n.Mode.Name, Steps: []api.PathStep{}}}
	src, dst := e.owner(q.Src), e.owner(q.Dst)
	switch me := n.State.Self.Name; {
	case (src == me || e.local(q.Src)) && dst == me:
		e.path.Part = "local"
		e.within()
	case src == me || src == "" && e.local(q.Src):
		e.path.Part = "out"
		e.out(dst)
	case dst == me:
		e.path.Part = "in"
		e.in(src)
	default:
		return api.Path{}, fmt.Errorf("trace: neither %v nor %v belongs to this node (%s): ask where one of them does: %v", q.Src, q.Dst, me, e.whereabouts())
	}
	e.path.Arrives = !e.dead
	return e.path, nil
}

type explanation struct {
	Node
	q    api.PathQuestion
	path api.Path
	dead bool
}

func (e *explanation) add(where, verdict, basis, remedy, format string, args ...any) {
	e.path.Steps = append(e.path.Steps, api.PathStep{Where: where, Found: fmt.Sprintf(format, args...), Verdict: verdict, Basis: basis, Remedy: remedy})
	e.dead = e.dead || verdict == drop
}

// owner names the node that an inner address belongs to, "" where none does.
func (e *explanation) owner(a netip.Addr) string {
	for _, n := range append([]control.Node{e.State.Self}, e.State.Nodes...) {
		if slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return n.Name
		}
	}
	return ""
}

func (e *explanation) whereabouts() string {
	var s []string
	for _, a := range []netip.Addr{e.q.Src, e.q.Dst} {
		if o := e.owner(a); o != "" {
			s = append(s, fmt.Sprintf("%v is %s's", a, o))
		} else {
			s = append(s, fmt.Sprintf("%v is no node's", a))
		}
	}
	return strings.Join(s, ", ")
}

// inner is this node's own address inside of the family asked for.
func (e *explanation) inner() (netip.Addr, bool) {
	for _, p := range e.State.Self.Prefixes {
		if p.Addr().Is4() == e.q.Dst.Is4() {
			return control.HostAddr(p), true
		}
	}
	return netip.Addr{}, false
}

func (e *explanation) local(a netip.Addr) bool {
	w, err := e.Host.Way(a, netip.Addr{}, "")
	return err == nil && w.Type == "local"
}

func (e *explanation) hop(node string) *backend.Hop {
	for i := range e.Status.Hops {
		if e.Status.Hops[i].Node == node {
			return &e.Status.Hops[i]
		}
	}
	return nil
}

// source finds the device by which the packet enters the kernel: "" = the kernel makes it itself.
func (e *explanation) source() (iif string) {
	w, err := e.Host.Way(e.q.Src, netip.Addr{}, "")
	switch {
	case err == nil && w.Type == "local":
		e.add("source", pass, asked, "", "%v is an address of this node itself", e.q.Src)
		return ""
	case err == nil && w.Type == "unicast" && !hostnet.Owned(w.Dev):
		_, state, _ := e.Host.NeighborOf(w.Dev, e.q.Src)
		e.add("source", pass, asked, "", "%v is behind %s here; its neighbour entry there is %s", e.q.Src, w.Dev, state)
		return w.Dev
	}
	e.add("source", note, asked, "", "this node has no route to a pod %v (%s): taken for a packet of the node itself", e.q.Src, wayText(w, err))
	return ""
}

func wayText(w hostnet.Way, err error) string {
	switch {
	case errors.Is(err, unix.EXDEV):
		return "refused: the way back to the source is another (rp_filter)"
	case err != nil:
		return err.Error()
	}
	s := w.Type
	if w.Via.IsValid() {
		s += " via " + w.Via.String()
	}
	if w.Dev != "" {
		s += " dev " + w.Dev
	}
	return fmt.Sprintf("%s, table %d", s, w.Table)
}

// kernelRoute asks for the route of the packet as it came in by iif, false where it goes no further.
func (e *explanation) kernelRoute(iif string) (hostnet.Way, bool) {
	src := e.q.Src
	if iif == "" && !e.local(src) {
		src = netip.Addr{} // the kernel would refuse to send from it
	}
	w, err := e.Host.Way(e.q.Dst, src, iif)
	from := "of the node itself"
	if iif != "" {
		from = "coming in by " + iif
	}
	if err != nil || w.Type != "unicast" && w.Type != "local" {
		remedy := fmt.Sprintf("see `ip route get %v`, `weft routes` and `weft status`", e.q.Dst)
		if errors.Is(err, unix.EXDEV) {
			remedy = "see net.ipv4.conf.*.rp_filter, and `ip route get " + src.String() + "`"
		}
		e.add("kernel route", drop, asked, remedy, "%v, %s: %s", e.q.Dst, from, wayText(w, err))
		return w, false
	}
	e.add("kernel route", pass, asked, "", "%v, %s: %s", e.q.Dst, from, wayText(w, nil))
	return w, true
}

// filters says what may drop the packet at a hook of the kernel's firewall.
func (e *explanation) filters(hook string, v6 bool) {
	chains, err := e.Host.Chains(hook, v6)
	where := "nftables " + hook
	if err != nil {
		e.add(where, note, asked, "", "cannot be told: %v", err)
		return
	}
	if e.Policy != nil { // it tells more than its chains do
		chains = slices.DeleteFunc(chains, func(c hostnet.Chain) bool { return strings.Contains(c.Name, " "+policyTable+" ") })
	}
	if len(chains) == 0 {
		e.add(where, pass, asked, "", "no chain")
		return
	}
	for _, c := range chains {
		switch {
		case c.Rules == 0 && c.Policy == "drop":
			e.add(where, drop, asked, "add a rule that accepts it, or set the policy to accept", "chain %s has no rules and drops by policy", c.Name)
		case c.Rules == 0:
			e.add(where, pass, asked, "", "chain %s has no rules and accepts", c.Name)
		default:
			e.add(where, note, asked, "", "chain %s has %d rules (policy %s): which of them it meets cannot be told from here; `nft monitor trace` tells", c.Name, c.Rules, c.Policy)
		}
	}
}

// policyTable is the nftables table of network policy.
const policyTable = hostnet.LinkPrefix + "-policy"

// policies says what network policies say of the packet.
func (e *explanation) policies(node bool) {
	if e.Policy == nil {
		return
	}
	for _, v := range e.Policy(e.q, node) {
		verdict := pass
		if v.Denied {
			verdict = drop
		}
		e.add("network policy", verdict, asked, v.Remedy, "%s", v.Text)
	}
}

// forwarded says whether the kernel lets it through from one device to another.
func (e *explanation) forwarded(iif string) {
	v6 := e.q.Dst.Is6()
	if iif == "" {
		e.filters("output", v6)
		e.policies(true)
		return
	}
	if on, err := e.Host.Forwards(iif, v6); err != nil {
		e.add("kernel forwarding", note, asked, "", "%v", err)
	} else if !on {
		e.add("kernel forwarding", drop, asked, "set forwarding to 1 in net.ipv4 or net.ipv6", "is off on %s", iif)
	} else {
		e.add("kernel forwarding", pass, asked, "", "is on for %s", iif)
	}
	e.filters("forward", v6)
	e.policies(false)
	if e.Stopped != "" {
		e.add("forward path", drop, asked, "see `weft doctor`", "%s", e.Stopped)
	}
	if e.StoppedAcross != "" && e.path.Part != "local" {
		e.add("forward path", drop, asked, "see `weft doctor`", "%s", e.StoppedAcross)
	}
}

// fits compares the packet's size with a device's MTU.
func (e *explanation) fits(where string, dev string, size, routeMTU int) bool {
	d, err := e.Host.Device(dev)
	if err != nil {
		e.add(where, drop, asked, "see `ip link` and `weft status`", "%v", err)
		return false
	}
	mtu := d.MTU
	if routeMTU > 0 {
		mtu = min(mtu, routeMTU)
	}
	switch {
	case !d.Up:
		e.add(where, drop, asked, "ip link set "+dev+" up", "%s is down", dev)
	case size > mtu:
		e.add(where, drop, asked, fmt.Sprintf("send at most %d bytes: set the pods' MTU to that", mtu),
			"too-big: %d bytes do not fit %s (MTU %d); the kernel answers with ICMP, or cuts an IPv4 packet that may be cut", size, dev, mtu)
	default:
		e.add(where, pass, asked, "", "%d bytes fit %s (MTU %d)", size, dev, mtu)
		return true
	}
	return false
}

// neighbor tells whether the kernel knows the next hop's MAC.
func (e *explanation) neighbor(where, dev string, to netip.Addr) (mac [6]byte, known bool) {
	mac, state, err := e.Host.NeighborOf(dev, to)
	switch {
	case err != nil:
		e.add(where, note, asked, "", "%v", err)
	case state == "failed":
		e.add(where, drop, asked, "see whether it runs and is on that link", "%v on %s does not answer (failed)", to, dev)
	case state == "none" || state == "incomplete":
		e.add(where, note, asked, "", "%v on %s: %s: the kernel asks for it with the first packet", to, dev, state)
	default:
		e.add(where, pass, asked, "", "%v on %s is %v (%s)", to, dev, net.HardwareAddr(mac[:]), state)
		return mac, true
	}
	return mac, false
}

// within is a packet from and to this node.
func (e *explanation) within() {
	iif := e.source()
	if w, ok := e.kernelRoute(iif); ok {
		e.deliver(w, iif)
	}
}

// deliver is the last part: by the kernel to the pod.
func (e *explanation) deliver(w hostnet.Way, iif string) {
	if w.Type == "local" {
		e.filters("input", e.q.Dst.Is6())
		e.policies(true)
		e.add("delivery", pass, asked, "", "%v is an address of this node itself", e.q.Dst)
		return
	}
	if hostnet.Owned(w.Dev) {
		e.add("delivery", drop, asked, "see whether the pod runs, and how it is attached", "the route leads into the overlay (%s): no pod %v is attached here", w.Dev, e.q.Dst)
		return
	}
	if e.forwarded(iif); e.dead {
		return
	}
	if e.fits("device", w.Dev, e.q.Size, w.MTU) {
		to := e.q.Dst
		if w.Via.IsValid() {
			to = w.Via
		}
		e.neighbor("delivery", w.Dev, to)
	}
}

// out is the way from here to the underlay, towards a peer; "" = no node owns the destination.
func (e *explanation) out(peer string) {
	iif := e.source()
	if peer == "" {
		e.add("overlay", note, computed, "", "no node's prefix holds %v", e.q.Dst)
	} else {
		e.add("overlay", pass, computed, "", "%v belongs to %s", e.q.Dst, peer)
	}
	if peer != "" && e.owner(e.q.Src) != e.State.Self.Name {
		switch own, ok := e.inner(); {
		case e.Masquerade && ok:
			e.add("masquerade", pass, computed, "", "%v is none of the overlay's: the packet enters it as %v (cni.masquerade)", e.q.Src, own)
		case e.Decide != nil:
			e.add("masquerade", drop, computed, "set cni.masquerade to true, or send from an address of this node's prefixes",
				"wrong-source: %v is none of this node's prefixes, and %s takes no other sources from it", e.q.Src, peer)
			return
		default:
			e.add("masquerade", note, computed, "", "%v is none of this node's prefixes: in modes with lanes %s would drop it as wrong-source", e.q.Src, peer)
		}
	}
	w, ok := e.kernelRoute(iif)
	if !ok {
		return
	}
	if e.forwarded(iif); e.dead {
		return
	}
	if !e.fits("device", w.Dev, e.q.Size, w.MTU) {
		return
	}
	dev, _ := e.Host.Device(w.Dev)
	hop := e.hop(peer)
	switch {
	case w.Dev == inside && len(e.Stages) > 0:
		var mac [6]byte
		if w.Via.IsValid() { // mode tap: frames
			mac, _ = e.neighbor("neighbour", w.Dev, w.Via)
		}
		if hop = e.lane(hop, mac); hop == nil {
			return
		}
	case dev.Kind == "vxlan":
		if hop = e.vxlan(w, dev); hop == nil {
			return
		}
	case !hostnet.Owned(w.Dev) && hop != nil: // a route to the peer itself
		to := e.q.Dst
		if w.Via.IsValid() {
			to = w.Via
		}
		e.neighbor("underlay neighbour", w.Dev, to)
		e.path.Next = peer
		return
	default:
		e.add("overlay", note, asked, "", "%s is none of the overlay's ways in mode %s: the packet leaves it", w.Dev, e.Mode.Name)
		return
	}
	e.underlay(hop)
	e.path.Next = hop.Node
}

// lane is what a lane out does.
func (e *explanation) lane(hop *backend.Hop, mac [6]byte) *backend.Hop {
	steps := e.Stages[dataplane.Out]
	if e.Decide == nil {
		return hop
	}
	h, died, ok := e.Decide(dataplane.Out, Make(e.q), "", netip.AddrPort{})
	switch {
	case !ok && hop == nil:
		e.add("lane out: bridge", drop, computed, "see `weft peers`", "no-route: there is no such peer")
		return nil
	case !ok: // frames: by the MAC
		if mac != [6]byte{} && net.HardwareAddr(mac[:]).String() != hop.MAC {
			e.add("lane out: bridge", note, computed, "", "%v is not the station of %s (%s)", net.HardwareAddr(mac[:]), hop.Node, hop.MAC)
		} else {
			e.add("lane out: bridge", pass, computed, "", "station %s → peer %s at %v, VNI %d, MTU %d", hop.MAC, hop.Node, hop.Endpoint, hop.VNI, hop.MTU)
		}
	case died != packet.Alive:
		remedy := map[packet.Drop]string{packet.NoRoute: "see `weft routes`", packet.TooBig: "send smaller packets"}[died]
		mtu := ""
		if h != nil {
			mtu = fmt.Sprintf(": %d bytes towards %v, whose MTU is %d", e.q.Size, h.Path.Dst, h.Path.MTU())
		}
		e.add("lane out: route", drop, asked, remedy, "%s%s", died, mtu)
		return nil
	default:
		i := slices.IndexFunc(e.Status.Hops, func(b backend.Hop) bool { return b.Endpoint == h.Path.Dst })
		if i < 0 {
			e.add("lane out: route", note, asked, "", "goes to %v, which is no peer any more: the table has just changed", h.Path.Dst)
			return nil
		}
		hop = &e.Status.Hops[i]
		e.add("lane out: route", pass, asked, "", "peer %s at %v, VNI %d, MTU %d", hop.Node, h.Path.Dst, h.Peer.VNI, h.Path.MTU())
	}
	for _, s := range steps {
		switch {
		case s == "sealed" && hop.Session != nil && !hop.Session.Established && !hop.Session.Plain:
			e.add("lane out: sealed", drop, asked, "see `weft peers`", "no-session: %s", hop.Session.Reason)
			return nil
		case s == "sealed" && hop.Session != nil && hop.Session.Plain:
			e.add("lane out: sealed", note, asked, "", "in clear, by permission: %s", hop.Session.Reason)
		case s == "sealed" && hop.Session != nil:
			e.add("lane out: sealed", pass, asked, "", "%s, epoch %d", hop.Session.Cipher, hop.Session.Epoch)
		case s == "vxlan":
			e.add("lane out: vxlan", pass, computed, "", "VXLAN header with VNI %d, inner Ethernet to %s: 22 bytes", hop.VNI, hop.MAC)
		case strings.HasPrefix(s, "send "):
			e.add("lane out: "+s, pass, computed, "", "UDP from port of this node to %v", hop.Endpoint)
		}
	}
	return hop
}

// vxlan is what a Linux vxlan device does: by neighbour to a MAC, by FDB to an endpoint.
func (e *explanation) vxlan(w hostnet.Way, dev hostnet.Device) *backend.Hop {
	to := e.q.Dst
	if w.Via.IsValid() {
		to = w.Via
	}
	mac, known := e.neighbor("neighbour", w.Dev, to)
	if !known {
		return nil
	}
	remotes, err := e.Host.FDBOf(w.Dev, mac)
	if err != nil || len(remotes) == 0 {
		e.add("FDB", drop, asked, "see `bridge fdb show dev "+w.Dev+"`", "no entry of %v on %s: nobody is sent to", net.HardwareAddr(mac[:]), w.Dev)
		return nil
	}
	e.add("FDB", pass, asked, "", "%v on %s → %v, VNI %d, UDP port %d", net.HardwareAddr(mac[:]), w.Dev, remotes[0], dev.VNI, dev.Port)
	for i := range e.Status.Hops {
		if e.Status.Hops[i].Endpoint.Addr() == remotes[0] {
			return &e.Status.Hops[i]
		}
	}
	e.add("FDB", note, asked, "", "%v is no peer of this node", remotes[0])
	return nil
}

// outer is the length of the packet with all that is around it on the underlay, outer IP header included.
func (e *explanation) outer(to netip.Addr) int {
	around := e.Status.UnderlayMTU - e.Status.InnerMTU
	v6 := slices.ContainsFunc(e.State.Self.Endpoints, netip.Addr.Is6)
	if v6 && to.Is4() {
		around -= packet.IPv6Header - packet.IPv4Header // the inner MTU reckons with the larger one
	}
	return e.q.Size + around
}

// underlay is the kernel's way from here to a peer.
func (e *explanation) underlay(hop *backend.Hop) {
	to := hop.Endpoint.Addr()
	w, err := e.Host.Way(to, netip.Addr{}, "")
	if err != nil || w.Type != "unicast" {
		e.add("underlay route", drop, asked, fmt.Sprintf("see `ip route get %v`", to), "%v: %s", to, wayText(w, err))
		return
	}
	e.add("underlay route", pass, asked, "", "outer header %v → %v: %s", w.Source, hop.Endpoint, wayText(w, nil))
	if !e.fits("underlay device", w.Dev, e.outer(to), w.MTU) {
		return
	}
	if w.Via.IsValid() {
		to = w.Via
	}
	e.neighbor("underlay neighbour", w.Dev, to)
	if !e.Mode.PastKernel() {
		e.filters("output", to.Is6())
	}
}

// in is the way from the underlay to a pod of this node, from a peer; "" = no node owns the source.
func (e *explanation) in(peer string) {
	var from netip.AddrPort
	hop := e.hop(peer)
	if hop != nil {
		from = hop.Endpoint
		w, err := e.Host.Way(from.Addr(), netip.Addr{}, "")
		if err != nil || w.Type != "unicast" {
			e.add("underlay route", drop, asked, fmt.Sprintf("see `ip route get %v`", from.Addr()), "there is no way back to %v: %s", from.Addr(), wayText(w, err))
			return
		}
		e.add("underlay route", pass, asked, "", "outer source %v, whom answers reach: %s", from.Addr(), wayText(w, nil))
		if e.Mode.Wire != mode.Direct && !e.Mode.PastKernel() { // it is for a socket here
			e.filters("input", from.Addr().Is6())
		}
	}
	iif := inside
	if len(e.Stages) > 0 {
		for _, s := range e.Stages[dataplane.In] {
			if s == "sealed" && hop != nil && hop.Session != nil {
				verdict, text := pass, fmt.Sprintf("the peer seals with %s", hop.Session.PeerCipher)
				if !hop.Session.Established {
					verdict, text = note, "no session: "+hop.Session.Reason
				}
				e.add("lane in: sealed", verdict, asked, "", "%s", text)
			}
			if s == "vxlan" {
				e.add("lane in: vxlan", pass, computed, "", "takes VNI %d", e.vni())
			}
		}
		if !e.laneIn(peer, from) {
			return
		}
	} else {
		iif = e.kernelDevice(hop)
		if peer == "" {
			e.add("overlay", note, computed, "", "no node's prefix holds the source %v; the kernel does not check it in mode %s", e.q.Src, e.Mode.Name)
		} else {
			e.add("overlay", pass, computed, "", "the source %v belongs to %s", e.q.Src, peer)
		}
	}
	if w, ok := e.kernelRoute(iif); ok {
		e.deliver(w, iif)
	}
}

func (e *explanation) vni() uint32 {
	for _, h := range e.Status.Hops {
		return h.VNI
	}
	return 0
}

// kernelDevice is where the packet comes in where the kernel forwards: the vxlan device, or the underlay's.
func (e *explanation) kernelDevice(hop *backend.Hop) string {
	if e.Mode.Wire != mode.Direct && len(e.Status.Devices) > 0 {
		return e.Status.Devices[0]
	}
	if hop == nil {
		return ""
	}
	w, _ := e.Host.Way(hop.Endpoint.Addr(), netip.Addr{}, "")
	return w.Dev
}

// laneIn is what a lane in decides, false where it drops.
func (e *explanation) laneIn(peer string, from netip.AddrPort) bool {
	if e.Decide == nil {
		return true
	}
	_, died, ok := e.Decide(dataplane.In, Make(e.q), peer, from)
	switch {
	case !ok && peer == "":
		e.add("lane in: bridge", drop, computed, "see `weft nodes` for who owns it", "wrong-source: no node's prefix holds %v", e.q.Src)
		return false
	case !ok:
		e.add("lane in: bridge", pass, computed, "", "the source belongs to %s", peer)
	case died == packet.UnknownPeer:
		e.add("lane in: route", drop, asked, "see `weft nodes` for who owns it", "%s or wrong-source: no node's prefix holds %v", died, e.q.Src)
		return false
	case died != packet.Alive:
		e.add("lane in: route", drop, asked, "see `weft routes`", "%s", died)
		return false
	default:
		e.add("lane in: route", pass, asked, "", "the source belongs to %s, the destination to this node", peer)
	}
	return true
}
