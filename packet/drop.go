package packet

// Drop says why a packet died. Alive, the zero value, means that it has not. Each reason has one
// name, used in every report, metric and capture.
type Drop uint8

const (
	Alive        Drop = iota
	TooShort          // shorter than the header it should have
	BadHeader         // a header that contradicts itself or the standard
	NotIP             // an inner frame that is neither IPv4 nor IPv6 (ARP, a VLAN tag, LLDP, …)
	NoRoute           // no node owns the inner destination
	NotOurs           // in: the inner destination is not in one of our prefixes
	UnknownPeer       // in: no node has this outer source address
	WrongSource       // in: the inner source does not belong to the peer it came from
	WrongVNI          // in: another network's VNI
	WrongMAC          // in: the inner destination MAC is not ours, or with AF_XDP the outer one
	TooBig            // larger than the tunnel carries; answered with ICMP
	BadChecksum       // the inner transport checksum is wrong
	Truncated         // the datagram was larger than any buffer (MSG_TRUNC)
	NoEndpoint        // out: we have no address of the peer's address family, or the lane has not the way that leads there
	Unresolved        // out: the next hop's MAC address is not known yet
	QueueFull         // the receiver's queue was full
	Refused           // the kernel refused it for another reason
	AuthFailed        // the AEAD tag is wrong
	Replayed          // an old or repeated counter
	NoSession         // no keys with the peer (yet)
	PlainRefused      // plaintext from, or for, a peer that must be sealed
	ReservedMAC       // to a MAC that no bridge forwards (01:80:c2:00:00:0x): spanning tree, LLDP, …
	FloodLimit        // out: more to flood at once than the lane may copy
	PolicyDenied      // by a network policy, where the kernel forwards: no lane has seen it
	NumDrops
)

var dropNames = [NumDrops]string{
	"alive", "too-short", "bad-header", "not-ip", "no-route", "not-ours", "unknown-peer",
	"wrong-source", "wrong-vni", "wrong-mac", "too-big", "bad-checksum", "truncated", "no-endpoint",
	"unresolved", "queue-full", "refused", "auth-failed", "replayed", "no-session", "plain-refused",
	"reserved-mac", "flood-limit", "policy-denied",
}

// String returns the reason's name, as in reports and metrics.
func (d Drop) String() string {
	if d < NumDrops {
		return dropNames[d]
	}
	return "unknown"
}

// Drops counts packets by reason.
type Drops [NumDrops]uint64

// Total is the number of dead packets.
func (d *Drops) Total() (n uint64) {
	for r := Alive + 1; r < NumDrops; r++ {
		n += d[r]
	}
	return n
}

// Add adds o to d.
func (d *Drops) Add(o *Drops) {
	for i := range d {
		d[i] += o[i]
	}
}

// Map returns the reasons that occurred, by name.
func (d *Drops) Map() map[string]uint64 {
	m := map[string]uint64{}
	for r := Alive + 1; r < NumDrops; r++ {
		if d[r] > 0 {
			m[r.String()] = d[r]
		}
	}
	return m
}
