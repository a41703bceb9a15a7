// Package probe finds out whether this node forwards pods' packets, by sending some as a pod does: from a network namespace of its own, over a
// link as pods have, through whatever the machine has in their way. A setting that looks right proves nothing; a packet that comes back does.
//
// The packets go from one reserved address to another, both behind the same link: the node has to forward them, and no other node, no pod and
// no tunnel has a part in it. What stops packets at the device that leads to the others, such a one does not meet; so others go to peers' own addresses, which
// their kernels answer. Where one of those is lost, a peer may be the reason, and it is this node's only if that peer answers the node itself, and
// something is found here that drops the packets. There is a link while the node has pods; it is the daemon's and goes with it.
package probe

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/hostnet"
	"weft/internal/ipnet"
)

// Owner is the name under which the probe hands the Host what it wants.
const Owner = "probe"

const (
	link   = "weft-probe"
	far    = "eth0" // its end in the namespace
	every  = 1500 * time.Millisecond
	wait   = 700 * time.Millisecond // for a packet to come back
	enough = 3                      // packets in a row that did not: one may be lost
	port   = 9                      // discard (RFC 863)
)

// Node is what the probe needs to know of the node.
type Node struct {
	Prefixes []netip.Prefix // the node's own; none = it is not known yet
	MTU      int
	Pods     bool         // it has any
	Peers    []netip.Addr // other nodes' own addresses in the overlay
}

// Probe judges one network namespace, that of the thread which called New.
type Probe struct {
	host *hostnet.Host
	log  *zap.Logger
	node func() Node

	ns      netns.NsHandle // the probe's own; -1 = not made
	inode   uint64
	mac     [6]byte
	every   time.Duration
	wait    time.Duration
	across  map[bool]*across // by whether it is IPv6
	verdict atomic.Pointer[Verdict]
}

// Verdict says in words what is wrong, and the remedy; "" = nothing, or it is not known.
type Verdict struct {
	Within  string // what on this node keeps pods' packets from being forwarded at all
	Across  string // what on this node keeps them from being forwarded to or from other nodes
	Unclear string // which packets to other nodes are lost for a reason that is not found on this one
}

// Stopped is what is known to stop packets on this node.
func (v Verdict) Stopped() string { return cmp.Or(v.Within, v.Across) }

// New returns a Probe that has made nothing yet.
func New(host *hostnet.Host, node func() Node, log *zap.Logger) *Probe {
	p := &Probe{host: host, node: node, log: log, ns: -1, every: every, wait: wait, across: map[bool]*across{false: {peers: map[netip.Addr]*peer{}}, true: {peers: map[netip.Addr]*peer{}}}}
	_, _ = rand.Read(p.mac[:]) // never fails
	p.mac[0] = p.mac[0]&^1 | 2
	return p
}

// Verdict is the newest. A Probe that is nil knows nothing.
func (p *Probe) Verdict() (v Verdict) {
	if p == nil {
		return v
	}
	if is := p.verdict.Load(); is != nil {
		v = *is
	}
	return v
}

// Run judges until ctx ends.
func (p *Probe) Run(ctx context.Context) error {
	if err := p.host.Apply(Owner, hostnet.Want{}); err != nil {
		p.log.Debug("probe", zap.Error(err))
	}
	defer func() {
		if p.ns.IsOpen() {
			p.ns.Close() // and with the namespace the link goes
		}
	}()
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	lost, standing := map[bool]int{}, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n := p.node()
		pairs := reserved(n.Prefixes)
		if !n.Pods || len(pairs) == 0 {
			if standing {
				_ = p.host.Apply(Owner, hostnet.Want{})
				standing = false
			}
			p.say(Verdict{})
			continue
		}
		if err := p.setup(n, pairs, false); err != nil {
			if !standing {
				p.log.Warn("whether pods' packets are forwarded cannot be found out", zap.Error(err))
			}
			standing = true
			p.say(Verdict{})
			continue
		}
		standing = true
		var v Verdict
		for _, pair := range pairs {
			v6 := pair[0].Is6()
			back, err := p.send(ctx, pair[0], pair[1])
			switch {
			case err != nil, back:
				lost[v6] = 0
				continue
			default:
				lost[v6]++
			}
			if lost[v6] >= enough && ctx.Err() == nil {
				v.Within = and(v.Within, p.blame(ctx, pair))
			} else if lost[v6] > 0 {
				v.Within = p.Verdict().Within // not sure yet
			}
		}
		for _, pair := range pairs {
			if v.Within != "" { // nothing gets as far as the others
				break
			}
			proven, unclear := p.lookAcross(ctx, n, pairs, pair[0])
			v.Across, v.Unclear = and(v.Across, proven), and(v.Unclear, unclear)
		}
		if ctx.Err() == nil {
			p.say(v)
		}
	}
}

func (p *Probe) say(v Verdict) {
	before := p.Verdict()
	if is := and(v.Within, v.Across); is != and(before.Within, before.Across) {
		if is == "" {
			p.log.Info("pods' packets are forwarded again")
		} else {
			p.log.Error("pods' packets are not forwarded", zap.String("reason", is))
		}
	}
	if v.Unclear != "" && v.Unclear != before.Unclear {
		p.log.Warn("packets to other nodes are lost", zap.String("reason", v.Unclear))
	}
	p.verdict.Store(&v)
}

// and joins what is not "".
func and(text, more string) string {
	if text != "" && more != "" {
		return text + "; " + more
	}
	return text + more
}

// smallest are the shortest prefixes whose addresses would be missed: longer ones give none to the probe.
const smallest4, smallest6 = 26, 120

// Addresses are the reserved ones among a node's prefixes, from which and to which the probe sends.
func Addresses(prefixes []netip.Prefix) (list []netip.Addr) {
	for _, pair := range reserved(prefixes) {
		list = append(list, pair[:]...)
	}
	return list
}

// Reserved says whether an address of a node's prefix is the probe's, and no pod's.
func Reserved(prefix netip.Prefix, a netip.Addr) bool {
	return slices.Contains(Addresses([]netip.Prefix{prefix}), a)
}

// reserved are the last two addresses of the first prefix of each family, IPv4's broadcast left aside.
func reserved(prefixes []netip.Prefix) (pairs [][2]netip.Addr) {
	done := map[bool]bool{}
	for _, p := range prefixes {
		v6 := p.Addr().Is6()
		if done[v6] || !v6 && p.Bits() > smallest4 || v6 && p.Bits() > smallest6 {
			continue
		}
		done[v6] = true
		b := p.Masked().Addr().AsSlice()
		for i := p.Bits(); i < len(b)*8; i++ {
			b[i/8] |= 1 << (7 - i%8)
		}
		last, _ := netip.AddrFromSlice(b)
		if !v6 {
			last = last.Prev()
		}
		pairs = append(pairs, [2]netip.Addr{last.Prev(), last})
	}
	return pairs
}

// setup makes namespace and link be there; with answers, what comes back from other nodes is traced as what is sent is.
func (p *Probe) setup(n Node, pairs [][2]netip.Addr, answers bool) error {
	if !p.ns.IsOpen() {
		if err := p.unshare(); err != nil {
			return err
		}
	}
	w := hostnet.Want{Links: []hostnet.Link{{Name: link, MTU: n.MTU, Quiet: true,
		Veth: &hostnet.Veth{Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(p.ns)), Inode: p.inode, Peer: far, PeerMAC: p.mac}}}}
	for _, pair := range pairs {
		for _, a := range pair {
			w.Routes = append(w.Routes, hostnet.Route{Dst: ipnet.Host(a), Dev: link})
			w.Neighbors = append(w.Neighbors, hostnet.Neighbor{Dev: link, IP: a, MAC: p.mac})
		}
	}
	hook, priority := *nftables.ChainHookIngress, *nftables.ChainPriorityRef(0)
	w.Tables = []hostnet.Table{{Name: link, Family: nftables.TableFamilyNetdev, Chains: []hostnet.TableChain{{Name: "trace", Type: nftables.ChainTypeFilter,
		Hook: &hook, Priority: &priority, Device: link, Rules: [][]expr.Any{traced()}}}}}
	if answers {
		chain := hostnet.TableChain{Name: "answers", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw}
		for _, pair := range pairs {
			chain.Rules = append(chain.Rules, append(hostnet.Match(ipnet.Host(pair[0]), false, true), traced()...))
		}
		w.Tables = append(w.Tables, hostnet.Table{Name: link, Family: nftables.TableFamilyINet, Chains: []hostnet.TableChain{chain}})
	}
	if err := p.host.Apply(Owner, w); err != nil {
		return err
	}
	pod, err := netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer pod.Close()
	end, err := pod.LinkByName(far)
	if err == nil {
		err = pod.LinkSetUp(end)
	}
	if err != nil {
		return fmt.Errorf("probe: set up its own end: %w", err)
	}
	return nil
}

// traced is the end of a rule: what meets it is traced.
func traced() []expr.Any {
	return []expr.Any{&expr.Immediate{Register: 1, Data: []byte{1}}, &expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: 1}}
}

// unshare makes the namespace, on a thread that ends with it.
func (p *Probe) unshare() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			p.ns, err = netns.Get()
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(p.ns), &st)
			p.inode = st.Ino
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("probe: make a network namespace: %w: grant CAP_SYS_ADMIN", err)
	}
	return nil
}

// send sends a packet from one address to another, and says whether it came back: itself, where the other is the probe's as well, else an echo reply.
func (p *Probe) send(ctx context.Context, src, dst netip.Addr) (back bool, err error) {
	gateway, err := p.host.Device(link)
	if err != nil {
		return false, err
	}
	var mark [16]byte
	_, _ = rand.Read(mark[:]) // never fails
	err = hostnet.Within(p.ns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		rt, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer rt.Close()
		end, err := rt.LinkByName(far)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		at := &unix.SockaddrLinklayer{Ifindex: end.Attrs().Index, Protocol: all}
		timeout := unix.NsecToTimeval(int64(p.wait / 10))
		if err := errors.Join(unix.Bind(fd, at), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)); err != nil {
			return err
		}
		if err := unix.Sendto(fd, frame(gateway.MAC, p.mac, src, dst, mark[:]), 0, at); err != nil {
			return err
		}
		buffer := make([]byte, 2048)
		for began := time.Now(); time.Since(began) < p.wait && ctx.Err() == nil; {
			n, from, err := unix.Recvfrom(fd, buffer, 0)
			if err != nil {
				continue // nothing came; what else is wrong shows in that nothing comes
			}
			if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			// An ICMP error quotes what it is about, to the last byte.
			if bytes.HasSuffix(buffer[:n], mark[:]) && answers(buffer[:n]) {
				back = true
				return nil
			}
		}
		return nil
	})
	return back, err
}

// answers says whether a frame holds an echo reply in IP without options, or a packet of the probe's that came back as it was.
func answers(b []byte) bool {
	const ether, protocol4, next6, head4, head6 = 14, 9, 6, 20, 40
	if len(b) <= ether+head6 {
		return false
	}
	ip := b[ether:]
	if ip[0]>>4 == 6 {
		return ip[next6] == unix.IPPROTO_UDP || ip[next6] == unix.IPPROTO_ICMPV6 && ip[head6] == 129
	}
	return ip[protocol4] == unix.IPPROTO_UDP || ip[protocol4] == unix.IPPROTO_ICMP && ip[head4] == 0
}

// frame is a packet in IP in Ethernet: a UDP datagram, whose checksum is left out over IPv4, as RFC 768 permits, from one of the probe's addresses to the other;
// to somebody else an echo request. The payload has an even number of bytes.
func frame(to, from [6]byte, src, dst netip.Addr, payload []byte) []byte {
	pseudo := func(protocol byte, length int) []byte {
		return append(append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...), 0, 0, 0, byte(length), 0, 0, 0, protocol)
	}
	length, v6 := 8+len(payload), src.Is6()
	var protocol byte
	var body []byte
	if toItself := src.Next() == dst; toItself {
		protocol = unix.IPPROTO_UDP
		body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, port), port)
		body = append(append(binary.BigEndian.AppendUint16(body, uint16(length)), 0, 0), payload...)
		if v6 {
			binary.BigEndian.PutUint16(body[6:], checksum(append(pseudo(protocol, length), body...)))
		}
	} else {
		protocol, body = unix.IPPROTO_ICMP, append([]byte{8, 0, 0, 0, payload[0], payload[1], 0, 1}, payload...)
		summed := body
		if v6 {
			protocol, body[0] = unix.IPPROTO_ICMPV6, 128
			summed = append(pseudo(protocol, length), body...)
		}
		binary.BigEndian.PutUint16(body[2:], checksum(summed))
	}
	b := append(append([]byte{}, to[:]...), from[:]...)
	if v6 {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(length), protocol, 64)
		return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), body...)
	}
	head := []byte{0x45, 0, 0, byte(20 + length), 0, 0, 0, 0, 64, protocol, 0, 0}
	head = append(append(head, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(head[10:], checksum(head))
	return append(append(append(b, 0x08, 0x00), head...), body...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// blame says what stops the packets.
func (p *Probe) blame(ctx context.Context, pair [2]netip.Addr) string {
	what, fam := "IPv4", "ipv4"
	if pair[0].Is6() {
		what, fam = "IPv6", "ipv6"
	}
	what = fmt.Sprintf("%s packets are not forwarded from pod to pod: ", what)
	if on, err := p.host.Forwards("all", pair[0].Is6()); err == nil && !on && pair[0].Is6() {
		return what + "net.ipv6.conf.all.forwarding is 0: sysctl -w net.ipv6.conf.all.forwarding=1"
	}
	if on, err := p.host.Forwards(link, pair[0].Is6()); err == nil && !on {
		return what + fmt.Sprintf("net.%s.conf.*.forwarding is 0 on pods' links: sysctl -w net.%[1]s.conf.all.forwarding=1", fam)
	}
	rule, err := p.host.TracedDrop(ctx, p.wait, func() { _, _ = p.send(ctx, pair[0], pair[1]) })
	switch {
	case rule != "":
		return what + rule + ": let the network's prefixes pass before it, as source and as destination"
	case err != nil:
		return what + err.Error()
	}
	if tables := p.host.Legacy(); len(tables) > 0 {
		return what + fmt.Sprintf("no rule of nftables drops them, and %s has rules: see `%[1]s -S FORWARD`, and let the network's prefixes pass there, as source and as destination", strings.Join(tables, " and "))
	}
	return what + "no rule of nftables drops them, and there is no iptables-legacy: see tc and XDP programs on the link " + link + ", and net." + fam + ".conf.*.rp_filter"
}
