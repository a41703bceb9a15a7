// Package backend holds what every way of carrying traffic has in common: what it is made from and
// what it reports. The ways themselves are its sub-packages, one folder each.
package backend

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"weft/backend/status"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/packet"
	"weft/reach"
)

// Owner is the name under which a backend hands the Host what it wants.
const Owner = "mode"

// Settings is what a backend is made from: the effective configuration, nothing about the cluster.
type Settings struct {
	Mode        string               // the mode's name, e.g. "tun"
	Node        string               // this node's name
	Network     []netip.Prefix       // the overlay's inner prefixes
	VNI         uint32               // 24 bits
	Port        uint16               // UDP port of the tunnel, already chosen (never 0)
	Interface   string               // node.interface, see package egress; "" = the one that has the endpoint
	UnderlayMTU int                  // node.mtu, bytes; 0 = that interface's
	Queues      int                  // queue pairs, already chosen (≥ 1)
	Seal        *Seal                // how traffic between nodes is sealed; nil = it is not
	Fault       *Fault               // a stage slowed on purpose; nil = none. A backend without such a stage must not start
	Host        *hostnet.Host        // the kernel's owner; somebody else runs and closes it
	Measured    *egress.Measured     // what packets of full size have shown of the paths to peers; nil = nobody measures
	Compose     Composer             // chooses among this way to carry traffic and others, peer by peer; nil = it is for all of them
	Outside     *Outside             // where packets to peers leave; nil = in the Host's namespace. A backend that cannot do it must not start
	Learnt      func() *reach.Learnt // how prefixes are reached without a tunnel, by a routing protocol; nil = there is none, and peers on the link are reached
	Log         *zap.Logger
}

// Seal is how traffic between nodes is sealed. A backend that cannot do it must not start.
type Seal struct {
	Cipher      string   // auto or the name of one
	Port        uint16   // UDP port of sealed traffic
	KeyFile     string   // this node's private key, used where its public key is published
	PSKFile     string   // the cluster's password; "" = none
	PermitPlain []string // names of nodes that may be spoken to in clear while they have no session with us

	RekeyAfter time.Duration // age of keys that are replaced
}

// Composer makes of one way to carry traffic a Chooser that has it besides others, or alone.
type Composer func(own Planner) Chooser

// Chooser is a Planner that chooses for each peer how it is reached.
type Chooser interface {
	Planner
	// Tell fills in by which way each of the peers of the last plan is reached; unreached are those that no way leads to, and why.
	Tell(hops []Hop) (unreached []Hop)
	// Choice says what there is to choose from for a node; false where it is not known.
	Choice(node string) (Choice, bool)
}

// Backend makes this machine carry packets for a State. All but Apply and Close may be called at any time.
type Backend interface {
	// Self returns what to announce about this node: MAC, Features.
	Self() control.Node
	// Apply makes the machine's state follow s: whole state, never a delta; idempotent; safe after
	// a crash. On an error as much as possible of s is in force and Apply may be called again.
	Apply(s control.State) error
	// Run watches what Apply made until ctx ends, and calls look when Apply should be called again: with nil when what it
	// was planned from may have changed, or nobody has looked for a second; with an error when what was in force has broken.
	// look returns soon. Run leaves forwarding state in place.
	Run(ctx context.Context, look func(broken error)) error
	// Close stops carrying packets by this process; kernel state that forwards by itself stays.
	Close() error

	Status() Status
	// InnerMTU is the largest inner packet, bytes; 0 where there is no path yet.
	InnerMTU() int
	// Lanes returns what carries packets in this process; nil where the kernel forwards.
	Lanes() Lanes
	// Choice says how a peer is reached, and what else there is; false where it is not known.
	Choice(node string) (Choice, bool)
}

// Lanes is what can be seen of packets that pass through this process.
type Lanes interface {
	// LaneStats returns the statistics of every lane, including what earlier openings of the path counted.
	LaneStats() []dataplane.LaneStats
	// Observe lets o see what passes every lane, also those to come, until stop is called. When stop returns, o is not called any more.
	Observe(o dataplane.Observer) (stop func())
	// Decide asks the stage that knows where packets go what it does with a bare IP packet now: on the way out, or as it came in from
	// a peer at an outer address. The hop is the peer found, nil if none was. False where packets are frames, or there is no path.
	Decide(d dataplane.Direction, ip []byte, peer string, from netip.AddrPort) (hop *packet.Hop, drop packet.Drop, ok bool)
	// Tunnel says where packets enter and leave. Without a path the addresses are the last one's.
	Tunnel() Tunnel
}

// Status is a backend's account of itself, cheap enough to ask for every second.
type Status struct {
	Ready       bool              // the path for the last State is programmed
	Reason      string            // why it is not; "" when Ready
	Underlay    []string          // devices that packets to peers leave by, or that have our endpoints; UnderlayMTU is the first's
	UnderlayMTU int               // bytes
	InnerMTU    int               // largest inner IP packet, bytes
	Devices     []string          // interfaces it made or adopted
	Features    map[string]string // ability → "on" or the reason why it is off
	KernelDrops map[string]uint64 // packets the kernel dropped around the path, by name
	Rings       []Ring            // of AF_XDP ports
	Repairs     uint64            // objects put back after somebody else removed or changed them
	Hops        []Hop             // one per peer that traffic can reach, sorted by node
	Unreached   []Hop             // peers that no way leads to, and why; sorted by node
	Problems    []control.Problem // peers that this way of carrying traffic cannot reach, or not with all that they are sent, and why

	// Rejected counts handshake messages that no peer can be named for, by reason.
	Rejected map[string]uint64
	// CookiesSent counts the cookies that were their answer.
	CookiesSent uint64
}

// Hop is how one peer is reached.
type Hop = status.Peer

// Choice is how one peer is reached, and what else there is.
type Choice = status.Choice

// Session is how it stands with the keys towards one peer.
type Session = status.Session

// Ring is how the AF_XDP rings of one queue of a device are attached, and what the kernel counts there.
type Ring = status.Ring

// Tunnel is what outer headers are made of, and between which ports packets go.
type Tunnel struct {
	Local     []netip.Addr // our endpoints, at most one per address family
	Port      uint16       // UDP port that we receive on
	PlainPort uint16       // the same for plaintext of peers that may still send it; 0 = none
	Ethernet  bool         // the inside port has frames, not IP packets
	Inside    string       // names of the ports
	Outside   string
}
