package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// believed is how long a router's word counts, as long as the kernel believes one (net.ipv4.route.mtu_expires).
	believed = 10 * time.Minute
	// The least that is taken for a path's MTU, bytes: less is either an attack or no path (net.ipv4.route.min_pmtu; RFC 8200 §5).
	least4 = 552
	least6 = 1280
)

// Ear hears routers that say that a tunnel packet of this node was too large (RFC 792 and 1191, RFC 4443 §3.2). The kernel hears them too, and
// knows for the sockets that sent the packet; of packets that AF_XDP has sent it knows nothing, and for those whose socket it knows this
// is sooner.
type Ear struct {
	ports []uint16
	news  chan struct{} // for whoever has a Finder look
	told  chan struct{} // for the Finder
	files []*os.File
	done  sync.WaitGroup

	mu    sync.Mutex
	heard map[netip.Addr]word // by the peer's endpoint
}

// word is what a router said.
type word struct {
	mtu   int
	until time.Time
	by    *Path // the path that it was said of; nil = not known yet
}

// Listen opens an Ear for packets to these UDP ports. It needs CAP_NET_RAW, and works in the network namespace of the calling thread.
func Listen(ports ...uint16) (*Ear, error) {
	e := &Ear{ports: ports, news: make(chan struct{}, 1), told: make(chan struct{}, 1), heard: map[netip.Addr]word{}}
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

func raw(family, protocol int) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	if family == unix.AF_INET {
		const icmpFilter = 1                                            // ICMP_FILTER of linux/icmp.h: a mask of the types that are kept away
		err = unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, -1-1<<3) // but destination unreachable
	} else {
		filter := unix.ICMPv6Filter{}
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[0] &^= 1 << 2 // packet too big
		err = unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &filter)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "icmp"), nil
}

// Close ends the Ear.
func (e *Ear) Close() {
	for _, f := range e.files {
		f.Close()
	}
	e.done.Wait()
}

// News gets a token when something was heard.
func (e *Ear) News() <-chan struct{} { return e.news }

func (e *Ear) listen(f *os.File, v4 bool) {
	buf := make([]byte, 2048)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // an error of the network's
		}
		to, port, mtu, ok := tooBig(buf[:n], v4)
		if !ok || !e.mine(port) {
			continue
		}
		e.mu.Lock()
		e.heard[to] = word{mtu: mtu, until: time.Now().Add(believed)}
		if len(e.heard) > most { // somebody makes them up: what is meant is told again
			clear(e.heard)
		}
		e.mu.Unlock()
		for _, to := range []chan struct{}{e.told, e.news} {
			select {
			case to <- struct{}{}:
			default:
			}
		}
	}
}

// most bounds what is remembered.
const most = 1 << 14

func (e *Ear) mine(port uint16) bool {
	for _, p := range e.ports {
		if p == port {
			return true
		}
	}
	return false
}

// tooBig reads an ICMP message as a raw socket gives it, IPv4 with its header: to where, and to which UDP port, a packet was too large, and how
// large it may be, bytes. Anybody may have sent it.
func tooBig(b []byte, v4 bool) (to netip.Addr, port uint16, mtu int, ok bool) {
	if v4 {
		header := 0
		if len(b) > 0 {
			header = int(b[0]&0x0f) * 4
		}
		if header < 20 || len(b) < header+8+20+8 || b[header] != 3 || b[header+1] != 4 {
			return to, 0, 0, false
		}
		icmp := b[header:]
		mtu = int(binary.BigEndian.Uint16(icmp[6:]))
		quoted := icmp[8:]
		inner := int(quoted[0]&0x0f) * 4
		if quoted[0]>>4 != 4 || inner < 20 || len(quoted) < inner+8 || quoted[9] != unix.IPPROTO_UDP || mtu < least4 {
			return to, 0, 0, false
		}
		return netip.AddrFrom4([4]byte(quoted[16:])), binary.BigEndian.Uint16(quoted[inner+2:]), mtu, true
	}
	if len(b) < 8+40+8 || b[0] != 2 {
		return to, 0, 0, false
	}
	mtu = int(min(binary.BigEndian.Uint32(b[4:]), 1<<16))
	quoted := b[8:]
	if quoted[0]>>4 != 6 || quoted[6] != unix.IPPROTO_UDP || mtu < least6 {
		return to, 0, 0, false
	}
	return netip.AddrFrom16([16]byte(quoted[24:])), binary.BigEndian.Uint16(quoted[42:]), mtu, true
}

// limit makes a path no wider than what was heard of it. A path that is another one by now, or that has waited long enough, is as wide as
// it looks until somebody says otherwise.
func (e *Ear) limit(to netip.Addr, p *Path, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
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
	p.MTU = min(p.MTU, w.mtu)
}
