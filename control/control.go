// Package control is the vocabulary of the slow path: who is in the cluster (Node, State), who says so (Source), and what becomes of
// it on this node (InForce). Sub-packages are the sources.
package control

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"
)

// MAC is a 48-bit Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return net.HardwareAddr(m[:]).String()
}

// ParseMAC reads a unicast address of 48 bits.
func ParseMAC(text string) (MAC, error) {
	hw, err := net.ParseMAC(text)
	if err != nil || len(hw) != len(MAC{}) || hw[0]&1 != 0 {
		return MAC{}, fmt.Errorf("%q is not a unicast Ethernet address", text)
	}
	return MAC(hw), nil
}

// keySize is the length of an X25519 public key in bytes (RFC 7748).
const keySize = 32

// WrongKey says what is wrong with a Node's PublicKey, "" when nothing is.
func WrongKey(text string) string {
	if key, err := base64.StdEncoding.DecodeString(text); err != nil || text != "" && len(key) != keySize {
		return fmt.Sprintf("not %d bytes in base64", keySize)
	}
	return ""
}

// Node is one member of the cluster. Immutable once published.
type Node struct {
	Name      string
	Endpoints []netip.Addr   // underlay addresses, most preferred first; never empty in a State
	Prefixes  []netip.Prefix // inner prefixes the node owns, masked
	PublicKey string         // base64 X25519, "" where the cluster is not sealed
	MAC       MAC            // VTEP MAC; zero = VTEPMAC(Name)
	Features  []string       // what the node announced, e.g. "rco"
	Ways      []Way          // by which it takes packets, always all of them, the one it likes best first; empty = it does not say
	Attrs     map[string]string
}

// VTEP returns the node's VTEP MAC: the announced one, or the one its name gives.
func (n *Node) VTEP() MAC {
	if n.MAC != (MAC{}) {
		return n.MAC
	}
	return VTEPMAC(n.Name)
}

// VTEPMAC derives a locally administered unicast MAC from a node's name, so that no state has to
// be shared for nodes to agree on it.
func VTEPMAC(name string) MAC {
	h := sha256.Sum256([]byte("weft vtep " + name))
	m := MAC(h[:6])
	m[0] = m[0]&^0x01 | 0x02
	return m
}

// FeatureProbe is announced by nodes that answer probes of the ways to them (docs/wire.md).
const FeatureProbe = "probe"

// FeatureRCO is announced by nodes that take and send remote checksum offload (docs/wire.md).
const FeatureRCO = "rco"

// Problem is something wrong with the cluster's data that did not stop the rest of it.
type Problem struct {
	Node string // "" = the source as a whole
	Text string // one sentence with the remedy
}

// State is the whole cluster as last known. Never edited after publication.
type State struct {
	// Revision tells clusters apart: of two States that one Source published, the later has the same Revision where Self and Nodes are
	// the same, and else a higher one. AsOf and Problems may differ all the same. 0 = never published. See Number.
	Revision uint64

	Self     Node      // this node as the source granted it: endpoints and prefixes
	Nodes    []Node    // all other nodes, sorted by name
	AsOf     time.Time // when the source last confirmed the data
	Problems []Problem // what was left out, or is stale, and why
}

// Number gives s the Revision that follows on the State published before it; the zero State is none. Where the nodes are the same s
// gets that one's list of them, so that next time one look at it tells.
func (s *State) Number(last *State) {
	listed := len(s.Nodes) == len(last.Nodes) && (len(s.Nodes) == 0 || &s.Nodes[0] == &last.Nodes[0])
	if !listed && slices.EqualFunc(s.Nodes, last.Nodes, Node.Equal) {
		s.Nodes, listed = last.Nodes, true
	}
	s.Revision = last.Revision
	if last.Revision == 0 || !listed || !s.Self.Equal(last.Self) {
		s.Revision++
	}
}

// HostAddr returns the address of a node's own prefix that the node itself holds, so that its own
// packets to pods have a source the peer accepts: the first after the network address, or that one
// where there is no other.
func HostAddr(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr()
	if p.Bits() >= a.BitLen()-1 {
		return a
	}
	return a.Next()
}

// Equal says whether both describe the same node in the same way.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.PublicKey == o.PublicKey && n.MAC == o.MAC && slices.Equal(n.Endpoints, o.Endpoints) &&
		slices.Equal(n.Prefixes, o.Prefixes) && slices.Equal(n.Features, o.Features) && slices.Equal(n.Ways, o.Ways) && maps.Equal(n.Attrs, o.Attrs)
}
