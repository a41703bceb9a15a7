// Package api is what a running daemon says about itself: JSON over HTTP on a unix socket. It holds
// the types, the server and the client, and imports nothing of weft but data (backend/status, reach), so that the types are the
// interface and the daemon's insides may change behind them.
//
//	GET /v1/status   Status
//	GET /v1/nodes    []Node
//	GET /v1/peers    []Peer
//	GET /v1/peers/{node}  Choice
//	GET /v1/routes   []Route
//	GET /v1/stages   []Lane
//	GET /v1/flows    []Flow
//	GET /v1/bgp      BGP
//	GET /v1/mesh     Mesh
//	POST /v1/mesh/forget  ForgetRequest → {}
//	GET /v1/trace    Traced, one a line, while they come
//	GET /v1/path     Path
//	POST /v1/probe   what was sent
//	GET /v1/capture  a pcapng file, until it is full, DELETE /v1/capture/{id} ends it, or the client leaves
//
//	POST /v1/pods/announce  AnnounceRequest → {}
//	POST /v1/pods/attach  AttachRequest → AttachResult
//	POST /v1/pods/detach  DetachRequest → {}
//	POST /v1/pods/check   CheckRequest → {}
//	POST /v1/pods/gc      GCRequest → {}
//	GET  /v1/pods         []Pod
//	GET  /v1/pods/status  PodStatus
//
// Lists are never null. An error is a status code other than 200 and {"error": "…"}, about pods with
// a stable "code" beside it.
package api

import (
	"net/netip"
	"time"

	"weft/backend/status"
)

// Status is the daemon's account of itself.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"` // the daemon's clock, for ages

	Node      string         `json:"node"`
	Mode      string         `json:"mode"`  // the first of modes
	Modes     []string       `json:"modes"` // by which packets are carried, the preferred first
	Network   []netip.Prefix `json:"network"`
	VNI       uint32         `json:"vni"`
	Port      uint16         `json:"port"`
	Endpoints []netip.Addr   `json:"endpoints"` // this node's, as the control source granted them
	Prefixes  []netip.Prefix `json:"prefixes"`

	Ready       bool              `json:"ready"`            // the path for the newest State is programmed
	Reason      string            `json:"reason,omitempty"` // why it is not
	Underlay    []string          `json:"underlay"`         // devices that packets to peers leave by, or that have our endpoints
	UnderlayMTU int               `json:"underlay_mtu"`     // bytes, the first's, or what node.mtu says
	InnerMTU    int               `json:"inner_mtu"`        // bytes, the largest inner IP packet
	Devices     []string          `json:"devices"`
	Features    map[string]string `json:"features"`        // ability → "on" or why it is off
	KernelDrops map[string]uint64 `json:"kernel_drops"`    // around the path, by name
	Rings       []Ring            `json:"rings,omitempty"` // of AF_XDP ports, since the path was opened
	Repairs     uint64            `json:"repairs"`         // kernel objects put back

	Cipher   string            `json:"cipher"`             // encryption.cipher
	Rejected map[string]uint64 `json:"rejected,omitempty"` // handshake messages of nobody known, by reason

	CookiesSent uint64 `json:"cookies_sent,omitempty"` // in answer to handshakes of nobody known

	PeersByWay map[string]int `json:"peers_by_way"` // how many peers are reached by each way; "none" = by none, see the problems

	Control  Control   `json:"control"`
	Apply    Apply     `json:"apply"`
	Problems []Problem `json:"problems"`

	Obstacles []string `json:"obstacles"` // what on this node is in the pods' packets' way and not weft's to mend, with the remedy
}

// Ring is how the AF_XDP rings of one queue of a device are attached, and what the kernel counts there.
type Ring = status.Ring

// Control is where the list of nodes comes from.
type Control struct {
	Kind  string    `json:"kind"`
	Nodes int       `json:"nodes"` // this one included; 0 = nothing heard yet
	AsOf  time.Time `json:"as_of"` // when the source last confirmed the data
}

// Apply is how programming the kernel goes.
type Apply struct {
	Applied  time.Time `json:"applied"`            // last success; zero = none yet
	Failures int       `json:"failures"`           // in a row
	Error    string    `json:"error,omitempty"`    // of the last try, when it failed
	Retry    time.Time `json:"retry,omitzero"`     // when the next try is due
	Attempts uint64    `json:"attempts,omitempty"` // since the daemon began
}

// Problem is something wrong with the cluster's data that did not stop the rest of it.
type Problem struct {
	Node string `json:"node,omitempty"`
	Text string `json:"text"`
}

// Node is a member of the cluster, as the control source tells it.
type Node struct {
	Name      string         `json:"name"`
	Self      bool           `json:"self"`
	Endpoints []netip.Addr   `json:"endpoints"`
	Prefixes  []netip.Prefix `json:"prefixes"`
	MAC       string         `json:"mac"`
	Features  []string       `json:"features"`
	Ways      []string       `json:"ways"` // by which it takes packets: vxlan:4789
}

// Peer is another node as traffic reaches it, with what has passed since the daemon began. Packets
// and bytes count inner packets through userspace lanes; they are zero where the kernel forwards.
type Peer = status.Peer

// Choice is how one peer is reached, what else there is, and what was before.
type Choice = status.Choice

// Flow is a flow of a pod's with a peer's, and whether it is carried past the node's own stack.
type Flow = status.Flow

// Session is how it stands with the keys towards a peer.
type Session = status.Session

// Route is one prefix of the overlay and where it leads.
type Route struct {
	Prefix   netip.Prefix   `json:"prefix"`
	Node     string         `json:"node"`
	Self     bool           `json:"self"`
	Endpoint netip.AddrPort `json:"endpoint,omitzero"` // none where Self, or where the peer is not reached (yet)
	MTU      int            `json:"mtu"`
}

// Lane is one direction of one queue pair since it began: Received + Copied = Sent + Σ drops of the stages.
type Lane struct {
	Name     string  `json:"name"`
	Turns    uint64  `json:"turns"` // batches
	Received uint64  `json:"received"`
	Copied   uint64  `json:"copied,omitempty"` // made by the lane itself, to flood others (mode tap)
	Sent     uint64  `json:"sent"`
	Waited   int64   `json:"waited_ns"` // blocked for packets
	Age      int64   `json:"age_ns"`    // since the lane began
	Stages   []Stage `json:"stages"`
}

// Stage is one row of a lane. Nanos is the time its Timed packets took.
type Stage struct {
	Name    string            `json:"name"`
	Calls   uint64            `json:"calls"`
	Packets uint64            `json:"packets"`
	Timed   uint64            `json:"timed"`
	Nanos   uint64            `json:"ns"`
	Drops   map[string]uint64 `json:"drops"`
}
