package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/hostnet"
	"weft/internal/sock"
)

const (
	// believed is how long a router's word counts, as long as the kernel believes one (net.ipv4.route.mtu_expires).
	believed = 10 * time.Minute
	// The least that is taken for a path's MTU, bytes: less is either an attack or no path (net.ipv4.route.min_pmtu; RFC 8200 §5).
	least4 = 552
	least6 = 1280
)

// ICMPListener hears routers that say that a tunnel packet of this node was too large (RFC 792 and 1191, RFC 4443 §3.2). The kernel hears them too, and
// knows for the sockets that sent the packet; of packets that AF_XDP has sent it knows nothing, and for those whose socket it knows this
// is sooner.
//
// Anybody can send such a message. It counts where it quotes a packet that we may have sent: from an address and port that a socket
// of ours sends from, to a tunnel port of an endpoint that the Finder has asked for, longer than what the path is
// said to carry. And where it says less of that path than is known, and did not come from inside the overlay. Who guesses all that is believed until packets
// of full size have shown otherwise (Measured), and no more then.
type ICMPListener struct {
	ports []uint16
	news  chan struct{} // for whoever has a Finder look
	told  chan struct{} // for the Finder
	files []*os.File
	done  sync.WaitGroup

	sends  func(netip.AddrPort) bool // sock.Sends
	inside func(index int) bool      // the device with this number is one of the overlay's

	mu      sync.Mutex
	closed  bool
	asked   map[netip.Addr]Path      // what the Finder has asked for, by the peer's endpoint
	heard   map[netip.Addr]word      // of these
	refuted map[netip.Addr]time.Time // of these, when what was heard proved false
	pause   time.Duration            // between two tokens, at least
	next    time.Time                // no token before
	timer   *time.Timer              // gives the next token; nil = nothing is new
}

// word is what a router said.
type word struct {
	mtu   int
	until time.Time
	by    *Path // the path that it was said of; nil = not known yet
}

// message is a router's word and what it quotes of the packet.
type message struct {
	from, to netip.AddrPort
	length   int // of the packet that was too large, bytes
	mtu      int // bytes
}

// Listen opens an ICMPListener for packets to these UDP ports. It needs CAP_NET_RAW, and works in the network namespace of the calling thread.
func Listen(ports ...uint16) (*ICMPListener, error) {
	e := newICMPListener(ports)
	v4, err := raw(unix.AF_INET, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, fmt.Errorf("egress: listen for ICMP: %w: grant CAP_NET_RAW", err)
	}
	e.files = append(e.files, v4)
	if v6, err := raw(unix.AF_INET6, unix.IPPROTO_ICMPV6); err == nil { // else the kernel has no IPv6
		e.files = append(e.files, v6)
	}
	for i, f := range e.files {
		e.done.Go(func() { e.listen(f, i == 0) })
	}
	return e, nil
}

func newICMPListener(ports []uint16) *ICMPListener {
	e := &ICMPListener{ports: ports, news: make(chan struct{}, 1), told: make(chan struct{}, 1), sends: sock.Sends,
		asked: map[netip.Addr]Path{}, heard: map[netip.Addr]word{}, refuted: map[netip.Addr]time.Time{}, pause: lookAgain}
	e.inside = e.overlay
	return e
}

func raw(family, protocol int) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	if family == unix.AF_INET {
		const icmpFilter = 1                                            // ICMP_FILTER of linux/icmp.h: a mask of the types that are kept away
		err = unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, -1-1<<3) // but destination unreachable
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	} else {
		filter := unix.ICMPv6Filter{}
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[0] &^= 1 << 2 // packet too big
		err = unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &filter)
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "icmp"), nil
}

// Close ends the ICMPListener.
func (e *ICMPListener) Close() {
	for _, f := range e.files {
		f.Close()
	}
	e.done.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.timer != nil {
		e.timer.Stop()
	}
}

// News gets a token when there is something to look at: at once where nothing was for a while, else not more often than the Finder bears.
func (e *ICMPListener) News() <-chan struct{} { return e.news }

func (e *ICMPListener) listen(f *os.File, v4 bool) {
	conn, err := f.SyscallConn()
	if err != nil {
		return // closed already
	}
	buf, control := make([]byte, 2048), make([]byte, 256)
	for {
		var n, m int
		var failed error
		err := conn.Read(func(fd uintptr) bool {
			n, m, _, _, failed = unix.Recvmsg(int(fd), buf, control, 0)
			return failed != unix.EAGAIN
		})
		if err != nil {
			return // closed
		}
		if failed != nil {
			continue // an error of the network's
		}
		if said, ok := tooBig(buf[:n], v4); ok {
			e.hear(said, arrival(control[:m]))
		}
	}
}

// hear takes in a message that came by the device with a number.
func (e *ICMPListener) hear(m message, device int) {
	if !slices.Contains(e.ports, m.to.Port()) || !e.sends(m.from) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, asked := e.asked[m.to.Addr()]
	// What fits is not too large. How much larger it may be is not known: a router that is a virtual one quotes super-packets.
	if !asked || p.Source != m.from.Addr() || m.mtu >= p.MTU || m.length <= m.mtu {
		return
	}
	now := time.Now()
	if at, lied := e.refuted[m.to.Addr()]; lied && now.Sub(at) < believed {
		return
	}
	if w, known := e.heard[m.to.Addr()]; known && m.mtu >= w.mtu && !now.After(w.until) {
		return
	}
	if e.inside(device) {
		return // a pod has made it up: no way to a peer leads through the overlay
	}
	e.heard[m.to.Addr()] = word{mtu: m.mtu, until: now.Add(believed)}
	if e.timer == nil && !e.closed {
		e.timer = time.AfterFunc(max(0, e.next.Sub(now)), e.tell)
	}
}

// tell gives the tokens for all that was heard since the last ones.
func (e *ICMPListener) tell() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timer, e.next = nil, time.Now().Add(e.pause)
	for _, to := range []chan struct{}{e.told, e.news} {
		select {
		case to <- struct{}{}:
		default:
		}
	}
}

// arrival is the number of the device that a message came by; 0 = the kernel does not say.
func arrival(control []byte) int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return int(binary.NativeEndian.Uint32(m.Data))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return int(binary.NativeEndian.Uint32(m.Data[16:])) // behind the address
		}
	}
	return 0
}

// overlay says whether a device is weft's: inside, a pod's, or the pods' bridge. It is looked for in the namespace of the ICMPListener's sockets.
func (e *ICMPListener) overlay(index int) (is bool) {
	if index == 0 {
		return false
	}
	conn, err := e.files[0].SyscallConn()
	if err != nil {
		return false
	}
	_ = conn.Control(func(fd uintptr) {
		request, err := unix.NewIfreq("index")
		if err != nil {
			return
		}
		request.SetUint32(uint32(index))
		is = unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, request) == nil && strings.HasPrefix(request.Name(), hostnet.LinkPrefix)
	})
	return is
}

// tooBig reads an ICMP message as a raw socket gives it, IPv4 with its header: from and to where a UDP packet was too large, and how
// large it may be. Anybody may have sent it.
func tooBig(b []byte, v4 bool) (m message, ok bool) {
	if v4 {
		header := 0
		if len(b) > 0 {
			header = int(b[0]&0x0f) * 4
		}
		if header < 20 || len(b) < header+8+20+8 || b[header] != 3 || b[header+1] != 4 {
			return m, false
		}
		icmp := b[header:]
		m.mtu = int(binary.BigEndian.Uint16(icmp[6:]))
		quoted := icmp[8:]
		inner := int(quoted[0]&0x0f) * 4
		// Ours have no options, and may not be cut: DF, and no part of a packet.
		if quoted[0] != 0x45 || len(quoted) < inner+8 || quoted[6]&^0x80 != 0x40 || quoted[7] != 0 || quoted[9] != unix.IPPROTO_UDP || m.mtu < least4 {
			return m, false
		}
		m.length = int(binary.BigEndian.Uint16(quoted[2:]))
		if int(binary.BigEndian.Uint16(quoted[inner+4:])) != m.length-inner {
			return m, false
		}
		m.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(quoted[12:])), binary.BigEndian.Uint16(quoted[inner:]))
		m.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(quoted[16:])), binary.BigEndian.Uint16(quoted[inner+2:]))
		return m, true
	}
	if len(b) < 8+40+8 || b[0] != 2 {
		return m, false
	}
	m.mtu = int(min(binary.BigEndian.Uint32(b[4:]), 1<<16))
	quoted := b[8:]
	if quoted[0]>>4 != 6 || quoted[6] != unix.IPPROTO_UDP || m.mtu < least6 {
		return m, false
	}
	payload := binary.BigEndian.Uint16(quoted[4:])
	if m.length = 40 + int(payload); binary.BigEndian.Uint16(quoted[40+4:]) != payload {
		return m, false
	}
	m.from = netip.AddrPortFrom(netip.AddrFrom16([16]byte(quoted[8:])), binary.BigEndian.Uint16(quoted[40:]))
	m.to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(quoted[24:])), binary.BigEndian.Uint16(quoted[42:]))
	return m, true
}

// keep forgets what no peer is reached by any more. pause is what the Finder bears between two tokens.
func (e *ICMPListener) keep(paths map[netip.Addr]Path, pause time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pause = pause
	for to := range e.asked {
		if _, still := paths[to]; !still {
			delete(e.asked, to)
			delete(e.heard, to)
			delete(e.refuted, to)
		}
	}
}

// limit takes note of a path that is asked for, and of what was heard of it. A path that is another one by now, or that has waited long enough, is
// as wide as it looks until somebody says otherwise.
func (e *ICMPListener) limit(to netip.Addr, p *Path, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked[to] = *p
	w, ok := e.heard[to]
	if !ok {
		return
	}
	if w.by == nil {
		is := *p
		w.by = &is
		e.heard[to] = w
	}
	if now.After(w.until) || *w.by != *p {
		delete(e.heard, to)
		return
	}
	p.hear(w.mtu, ByRouter)
}

// refute forgets what was heard of a path before packets as large as its devices carry went over it. Whoever said that may say it again: nobody is heard of
// this path for a while.
func (e *ICMPListener) refute(to netip.Addr, whole time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w, ok := e.heard[to]; ok && w.until.Add(-believed).Before(whole) {
		delete(e.heard, to)
		e.refuted[to] = whole
	}
}
