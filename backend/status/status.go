// Package status is what is told of the ways to other nodes: by backends, by the API and by metrics. It is data alone, in the form that
// the API gives it.
package status

import (
	"net/netip"
	"time"
)

// Ring is how the AF_XDP rings of one queue of a device are attached, and what the kernel counts there.
type Ring struct {
	Device   string            `json:"device"`
	Queue    int               `json:"queue"`
	Attach   string            `json:"attach"` // native or generic
	ZeroCopy bool              `json:"zero_copy"`
	Counters map[string]uint64 `json:"counters"` // XDP_STATISTICS
}

// Peer is how another node is reached, with what has passed since the daemon began.
type Peer struct {
	Node     string         `json:"node"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Source   netip.Addr     `json:"source"` // ours
	Device   string         `json:"device"` // by which packets leave; "" = the kernel has no route
	Router   netip.Addr     `json:"router"` // on it; "" = the endpoint is on the link
	Prefixes []netip.Prefix `json:"prefixes"`
	Way      string         `json:"way"`              // what is on the wire, and its port: vxlan:4789; "" = no way leads there
	State    string         `json:"state,omitempty"`  // of that way, of State…
	Reason   string         `json:"reason,omitempty"` // why it is no better one, or none
	Changes  uint64         `json:"way_changes"`      // of the way, since the daemon began
	VNI      uint32         `json:"vni"`
	MTU      int            `json:"mtu"`                // of inner packets
	Narrowed string         `json:"narrowed,omitempty"` // who says that it is less than devices and routes have; "" = nobody
	MAC      string         `json:"mac"`

	// Inner packets through userspace lanes; zero where the kernel forwards.
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`

	Session *Session `json:"session,omitempty"` // nil where traffic is not sealed
}

// Session is how it stands with the keys towards one peer.
type Session struct {
	Established bool              `json:"established"`
	Reason      string            `json:"reason,omitempty"` // why not
	Epoch       uint8             `json:"epoch"`
	Cipher      string            `json:"cipher,omitempty"`      // that we seal with
	PeerCipher  string            `json:"peer_cipher,omitempty"` // that the peer seals with
	Since       time.Time         `json:"since,omitzero"`        // the last handshake
	Initiator   bool              `json:"initiator"`             // of that
	Handshakes  uint64            `json:"handshakes"`            // since the daemon began
	Attempts    int               `json:"attempts"`              // in a row without an answer
	Endpoint    netip.AddrPort    `json:"endpoint"`              // where it was heard last
	Plain       bool              `json:"plain"`                 // spoken to in clear meanwhile, by permission
	Sealed      uint64            `json:"sealed"`                // packets sealed in this session
	Rejected    map[string]uint64 `json:"rejected"`              // by reason

	CookiesSent     uint64 `json:"cookies_sent"`     // to its address, instead of answers
	CookiesReceived uint64 `json:"cookies_received"` // from it
}

// Flow is a flow of a pod's with a peer's, and whether it is carried past the node's own stack.
type Flow struct {
	Protocol uint8          `json:"protocol"` // 6 = TCP, 17 = UDP
	Local    netip.AddrPort `json:"local"`    // the pod
	Remote   netip.AddrPort `json:"remote"`
	Peer     string         `json:"peer,omitempty"`
	Cached   bool           `json:"cached"`
	Reason   string         `json:"reason,omitempty"` // why not
	Since    time.Time      `json:"since,omitzero"`   // when it was admitted

	// Inner packets past the stack.
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	Idle      int64  `json:"idle_ns"` // since the last of them
}
