package hostnet

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Neighbor is a permanent neighbour (ARP, NDP) entry on a device of ours.
type Neighbor struct {
	Dev string
	IP  netip.Addr
	MAC [6]byte

	odd bool // proxied, or learnt over the wire
}

// FDBEntry is a static forwarding entry of a VXLAN device: frames to MAC go to the tunnel endpoint Remote.
type FDBEntry struct {
	Dev    string
	MAC    [6]byte
	Remote netip.Addr

	// Attributes that weft never sets, so that an entry with them is never right.
	port           uint16 // big-endian as on the wire
	vni, oif, nhid uint32
	dynamic        bool // not permanent: learnt, or to expire
}

type neighborKey struct {
	dev string
	ip  netip.Addr
}

type fdbKey struct {
	dev string
	mac [6]byte
}

func (n Neighbor) key() neighborKey { return neighborKey{n.Dev, n.IP} }
func (n Neighbor) device() string   { return n.Dev }
func (n Neighbor) shared() bool     { return false }

func (f FDBEntry) key() fdbKey    { return fdbKey{f.Dev, f.MAC} }
func (f FDBEntry) device() string { return f.Dev }
func (f FDBEntry) shared() bool   { return false }

func (n Neighbor) String() string {
	return fmt.Sprintf("neighbour %s lladdr %s dev %s", n.IP, macString(n.MAC), n.Dev)
}

func (f FDBEntry) String() string {
	return fmt.Sprintf("fdb %s dst %s dev %s", macString(f.MAC), f.Remote, f.Dev)
}

func macString(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// ndmsg (linux/neighbour.h), 12 bytes:
//
//	family 1 | pad 3 | ifindex 4 | state 2 | flags 1 | type 1
const sizeofNdMsg = 12

// Attributes and flags of linux/neighbour.h.
const (
	ndaDst     = 1
	ndaLLAddr  = 2
	ndaPort    = 6
	ndaVNI     = 7
	ndaIfindex = 8
	ndaNHID    = 13

	ntfSelf       = 0x02
	ntfMaster     = 0x04
	ntfProxy      = 0x08
	ntfExtLearned = 0x10
)

func ndMessage(kind, flags uint16, fam uint8, index int32, ndFlags uint8) message {
	m := message{kind: kind, flags: flags, body: make([]byte, sizeofNdMsg, 64)}
	m.body[0] = fam
	native.PutUint32(m.body[4:], uint32(index))
	if kind != unix.RTM_GETNEIGH {
		native.PutUint16(m.body[8:], unix.NUD_PERMANENT)
		m.body[10] = ndFlags
	}
	return m
}

func (n Neighbor) add(replace bool, index map[string]int32) message {
	m := ndMessage(unix.RTM_NEWNEIGH, addFlags(replace), family(n.IP), index[n.Dev], 0)
	m.attr(ndaDst, n.IP.AsSlice())
	m.attr(ndaLLAddr, n.MAC[:])
	return m
}

func (n Neighbor) del(index map[string]int32) message {
	m := ndMessage(unix.RTM_DELNEIGH, 0, family(n.IP), index[n.Dev], 0)
	m.attr(ndaDst, n.IP.AsSlice())
	return m
}

func (f FDBEntry) add(replace bool, index map[string]int32) message {
	m := ndMessage(unix.RTM_NEWNEIGH, addFlags(replace), unix.AF_BRIDGE, index[f.Dev], ntfSelf)
	m.attr(ndaLLAddr, f.MAC[:])
	m.attr(ndaDst, f.Remote.AsSlice())
	return m
}

func (f FDBEntry) del(index map[string]int32) message {
	m := ndMessage(unix.RTM_DELNEIGH, 0, unix.AF_BRIDGE, index[f.Dev], ntfSelf)
	m.attr(ndaLLAddr, f.MAC[:])
	// Without a destination the kernel would take all of the MAC's.
	if f.Remote.IsValid() {
		m.attr(ndaDst, f.Remote.AsSlice())
	}
	if f.port != 0 {
		m.attr(ndaPort, native.AppendUint16(nil, f.port))
	}
	if f.vni != 0 {
		m.u32(ndaVNI, f.vni)
	}
	if f.oif != 0 {
		m.u32(ndaIfindex, f.oif)
	}
	return m
}

func (n Neighbor) evict(index map[string]int32) message { return n.del(index) }

func (f FDBEntry) evict(index map[string]int32) message {
	return FDBEntry{Dev: f.Dev, MAC: f.MAC}.del(index) // without a destination: all of the MAC's
}

// dumpNeighbors returns a device's permanent neighbours of one family.
func dumpNeighbors(s *socket, fam uint8, dev string, index int32) ([]Neighbor, error) {
	m := ndMessage(unix.RTM_GETNEIGH, 0, fam, 0, 0)
	m.u32(ndaIfindex, uint32(index))
	return dump(s, m, unix.RTM_NEWNEIGH, func(b []byte) (n Neighbor, ok bool) {
		if len(b) < sizeofNdMsg || b[0] != fam || int32(native.Uint32(b[4:])) != index ||
			native.Uint16(b[8:]) != unix.NUD_PERMANENT {
			return n, false
		}
		n.Dev = dev
		n.odd = b[10]&(ntfProxy|ntfExtLearned) != 0
		for kind, v := range attrs(b[sizeofNdMsg:]) {
			switch kind {
			case ndaDst:
				n.IP, _ = netip.AddrFromSlice(v)
			case ndaLLAddr:
				copy(n.MAC[:], v)
			}
		}
		return n, n.IP.IsValid()
	})
}

// dumpFDB returns a VXLAN device's forwarding entries.
func dumpFDB(s *socket, dev string, index int32) ([]FDBEntry, error) {
	m := ndMessage(unix.RTM_GETNEIGH, 0, unix.AF_BRIDGE, index, 0)
	return dump(s, m, unix.RTM_NEWNEIGH, func(b []byte) (f FDBEntry, ok bool) {
		if len(b) < sizeofNdMsg || b[0] != unix.AF_BRIDGE || int32(native.Uint32(b[4:])) != index ||
			b[10]&ntfSelf == 0 || b[10]&ntfMaster != 0 {
			return f, false
		}
		f.Dev = dev
		f.dynamic = native.Uint16(b[8:])&unix.NUD_PERMANENT == 0 || b[10]&ntfExtLearned != 0
		for kind, v := range attrs(b[sizeofNdMsg:]) {
			switch kind {
			case ndaLLAddr:
				copy(f.MAC[:], v)
			case ndaDst:
				f.Remote, _ = netip.AddrFromSlice(v)
			case ndaPort:
				if len(v) >= 2 {
					f.port = native.Uint16(v)
				}
			case ndaVNI:
				f.vni = u32(v)
			case ndaIfindex:
				f.oif = u32(v)
			case ndaNHID:
				f.nhid = u32(v)
			}
		}
		// The device's own multicast and unicast filters are listed too, without a remote; they are not FDB.
		return f, f.Remote.IsValid() || f.nhid != 0
	})
}
