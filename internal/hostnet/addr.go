package hostnet

import (
	"fmt"
	"net/netip"

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

func (a Addr) add(_ bool, index map[string]int32) message {
	m := a.message(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index)
	if a.Prefix.Addr().Is6() {
		// No duplicate address detection: nobody on the device could answer, and routes that name the
		// address as their source are refused until it is over.
		m.body[2] = unix.IFA_F_NODAD
	}
	return m
}

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
	return Addr{
		Dev: dev, Prefix: a.prefix,
		odd: a.flags&unix.IFA_F_PERMANENT == 0 || a.flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) != 0,
	}
}
