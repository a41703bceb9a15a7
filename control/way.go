package control

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Way is one kind of packet that a node takes from its peers: what is on the wire, and the UDP port that it comes in by. It is no mode: that
// is how a node makes it, and several modes are one way. A node takes packets by all of its ways, and sends them to each peer by one.
type Way struct {
	Name string // of the names below, or one that this build does not know
	Port uint16 // 0 where it has none
}

// Names of ways; docs/wire.md has the formats.
const (
	WayDirect = "direct" // inner packets as they are
	WayVXLAN  = "vxlan"  // IP packets in VXLAN (RFC 7348), to the VTEP MAC that the peer announces
	WayFrames = "frames" // any frame in VXLAN: who takes it answers ARP and neighbour discovery
	WayIPUDP  = "ipudp"  // an inner IP packet, and nothing else, in a UDP datagram

	// Sealed, by what is inside; the first is VXLAN.
	WaySealed       = "sealed"
	WaySealedFrames = "sealed-frames"
	WaySealedIPUDP  = "sealed-ipudp"
)

// Ways that this build knows, and whether they have a port.
var knownWays = map[string]bool{WayDirect: false, WayVXLAN: true, WayFrames: true, WayIPUDP: true, WaySealed: true, WaySealedFrames: true, WaySealedIPUDP: true}

// KernelVXLAN are the ways of a Linux vxlan device on a port: whatever VXLAN brings, the kernel takes.
func KernelVXLAN(port uint16) []Way { return []Way{{WayVXLAN, port}, {WayFrames, port}} }

// Sealed says whether nobody on the way can read or change what it carries.
func (w Way) Sealed() bool { return w.Name == WaySealed || strings.HasPrefix(w.Name, WaySealed+"-") }

// String writes a way as it is published: direct, vxlan:4789.
func (w Way) String() string {
	if w.Port == 0 {
		return w.Name
	}
	return w.Name + ":" + strconv.Itoa(int(w.Port))
}

// MarshalText implements encoding.TextMarshaler by String.
func (w Way) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads what String wrote. It takes any text: what it cannot read, a later version may have written, and it is a way
// that this one does not know.
func (w *Way) UnmarshalText(text []byte) error {
	*w = Way{Name: string(text)}
	name, port, _ := strings.Cut(string(text), ":")
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 && strconv.FormatUint(n, 10) == port {
		*w = Way{Name: name, Port: uint16(n)}
	}
	return nil
}

// ParseWay reads a way that a person wrote. The error says what to write.
func ParseWay(text string) (w Way, err error) {
	_ = w.UnmarshalText([]byte(text)) // takes anything
	switch ported, known := knownWays[w.Name]; {
	case known && ported == (w.Port != 0):
		return w, nil
	case known && ported:
		return Way{}, fmt.Errorf("way %q has no port: write %s:4789, say", text, w.Name)
	case known:
		return Way{}, fmt.Errorf("way %q has a port: write %s", text, w.Name)
	}
	return Way{}, fmt.Errorf("%q is not a way: write direct, or one of vxlan, frames, ipudp, sealed, sealed-frames, sealed-ipudp with its port, vxlan:4789 say", text)
}

// Takes says whether a node takes packets by a way: it publishes that, or, where it publishes none, nobody knows.
func (n *Node) Takes(w Way) (takes, known bool) {
	return slices.Contains(n.Ways, w), len(n.Ways) > 0
}
