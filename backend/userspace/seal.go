package userspace

import (
	"fmt"
	"net/netip"
	"slices"

	"weft/backend"
	"weft/control"
	"weft/packet"
)

// Sealer keeps keys with the peers and makes the stages that use them. It outlives ports and lanes:
// what it has sealed with a key it never forgets.
type Sealer interface {
	Overhead() int // bytes its stage adds
	// PublicKey is what this node announces to be known by, in base64; "" = nothing, its keys follow from a password.
	PublicKey() string
	// Stage makes the stage of lane i, for one out and one in lane.
	Stage(i int) packet.Stage
	// Serve receives handshakes from conns until the port closes them, and sends by them. The returned
	// function waits for that end.
	Serve(conns []packet.Conn) (wait func())
	// Update says who this node and its peers are. An error means that nothing is carried.
	Update(self control.Node, peers []SealedPeer) error
	// Sessions reports by Hop.Peer.ID, Unassigned what could not be assigned to any: rejections by reason, and cookies sent.
	Sessions() map[uint32]backend.Session
	Unassigned() (rejected map[string]uint64, cookies uint64)
}

// SealedPeer is a node that traffic is sealed for.
type SealedPeer struct {
	Node  *control.Node // a copy of its own: what is built next shares it, and holds no State for it
	Hop   *packet.Hop
	Plain *packet.Hop // where plaintext goes while there are no keys; nil = it never does
}

func sealedPeer(n *control.Node, hop *packet.Hop, set backend.Settings, path Path) SealedPeer {
	node := *n
	p := SealedPeer{Node: &node, Hop: hop}
	if path.Sealed && slices.Contains(set.Seal.PermitPlain, n.Name) {
		plain := *hop
		plain.Path = hop.Path.To(netip.AddrPortFrom(hop.Path.Dst.Addr(), path.PlainPort))
		p.Plain = &plain
	}
	return p
}

func newSealer(kind Kind, s backend.Settings) (Sealer, error) {
	if s.Seal == nil {
		return nil, nil
	}
	if kind.Seal == nil {
		return nil, fmt.Errorf("userspace: mode %s cannot seal traffic: set encryption.cipher: none, or choose another mode", s.Mode)
	}
	return kind.Seal(s)
}
