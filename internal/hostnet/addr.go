package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Addr is an address of this node on a device of ours.
type Addr struct {
	Dev    string
	Prefix netip.Prefix // the address with its length, not masked; host lengths in all that weft does

	odd bool // limited in time, or refused by duplicate address detection
}

func (a Addr) key() Addr      { return Addr{Dev: a.Dev, Prefix: a.Prefix} }
func (a Addr) device() string { return a.Dev }
func (a Addr) shared() bool   { return false }

func (a Addr) String() string { return fmt.Sprintf("address %s dev %s", a.Prefix, a.Dev) }

// ifaddrmsg (linux/if_addr.h), 8 bytes: family 1 | prefixlen 1 | flags 1 | scope 1 | index 4
const sizeofIfAddrmsg = unix.SizeofIfAddrmsg

func (a Addr) message(kind, flags uint16, index map[string]int32) message {
	m := message{kind: kind, flags: flags, body: make([]byte, sizeofIfAddrmsg, 64)}
	copy(m.body, []byte{family(a.Prefix.Addr()), byte(a.Prefix.Bits()), 0, unix.RT_SCOPE_UNIVERSE})
	native.PutUint32(m.body[4:], uint32(index[a.Dev]))
	m.attr(unix.IFA_LOCAL, a.Prefix.Addr().AsSlice())
	m.attr(unix.IFA_ADDRESS, a.Prefix.Addr().AsSlice())
	return m
}

func (a Addr) add(replace bool, index map[string]int32) message {
	m := a.message(unix.RTM_NEWADDR, addFlags(replace), index)
	if a.Prefix.Addr().Is6() {
		m.u32(unix.IFA_FLAGS, flags6)
	}
	return m
}

// flags6 are the flags of our IPv6 addresses. No duplicate address detection: nobody on the device could answer,
// and routes that name the address as their source are refused until it is over. No route to the address on the
// link: all it would do is to send the node's own packets out while the local route is not there yet.
const flags6 = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE

func (a Addr) del(index map[string]int32) message { return a.message(unix.RTM_DELADDR, 0, index) }

func (a Addr) evict(index map[string]int32) message { return a.del(index) }

// address is one entry of the kernel's address table, on whatever device.
type address struct {
	index  int32
	prefix netip.Prefix
	flags  uint32
	scope  uint8
}

// dumpAddrs returns all addresses of the namespace.
func dumpAddrs(s *socket) ([]address, error) {
	m := message{kind: unix.RTM_GETADDR, body: make([]byte, sizeofIfAddrmsg)}
	return dump(s, m, unix.RTM_NEWADDR, func(b []byte) (a address, ok bool) {
		if len(b) < sizeofIfAddrmsg {
			return a, false
		}
		a.index, a.flags, a.scope = int32(native.Uint32(b[4:])), uint32(b[2]), b[3]
		var local, remote netip.Addr
		for kind, v := range attrs(b[sizeofIfAddrmsg:]) {
			switch kind {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(v)
			case unix.IFA_ADDRESS:
				remote, _ = netip.AddrFromSlice(v)
			case unix.IFA_FLAGS:
				a.flags = u32(v)
			}
		}
		if !local.IsValid() { // IPv6 addresses without a peer have IFA_ADDRESS only
			local = remote
		}
		a.prefix = netip.PrefixFrom(local, int(b[1]))
		return a, a.prefix.IsValid()
	})
}

// ours turns a table entry into an Addr of the named device.
func (a address) ours(dev string) Addr {
	odd := a.flags&unix.IFA_F_PERMANENT == 0
	if a.prefix.Addr().Is6() {
		odd = odd || a.flags&flags6 != flags6 || a.flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) != 0
	}
	return Addr{Dev: dev, Prefix: a.prefix, odd: odd}
}

// localTimeout bounds the wait for an IPv6 address to begin to work.
const localTimeout = 2 * time.Second

// awaitLocal waits until the node takes packets to the given IPv6 addresses as its own. The kernel does so in a
// work queue some time after it has accepted an address, and until then would forward them.
func awaitLocal(s *socket, addrs map[Addr]bool) error {
	deadline := time.Now().Add(localTimeout)
	for a := range addrs {
		ip := a.Prefix.Addr()
		if !ip.Is6() {
			continue
		}
		for {
			local, err := isLocal(s, ip)
			if err != nil {
				return fmt.Errorf("hostnet: look up %s: %w", ip, err)
			}
			if local {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("hostnet: %s does not work: the local routing table has no route for it", a)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// isLocal says whether the kernel's route to an address ends at this node.
func isLocal(s *socket, ip netip.Addr) (bool, error) {
	m := message{kind: unix.RTM_GETROUTE, body: make([]byte, sizeofRtMsg)}
	m.body[0], m.body[1] = family(ip), byte(ip.BitLen())
	m.attr(unix.RTA_DST, ip.AsSlice())
	answer, err := s.get(m)
	if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
		return false, nil // the guard's answer
	}
	return err == nil && len(answer) >= sizeofRtMsg && answer[7] == unix.RTN_LOCAL, err
}
