// Package backend holds what every way of carrying traffic has in common: what it is made from and
// what it reports. The ways themselves are its sub-packages, one folder each.
package backend

import (
	"net/netip"

	"go.uber.org/zap"

	"weft/control"
)

// Settings is what a backend is made from: the effective configuration, nothing about the cluster.
type Settings struct {
	Mode        string         // the mode's name, e.g. "tun"
	Node        string         // this node's name
	Network     []netip.Prefix // the overlay's inner prefixes
	VNI         uint32         // 24 bits
	Port        uint16         // UDP port of the tunnel, already chosen (never 0)
	Interface   string         // underlay interface; "" = the one that holds the endpoint
	UnderlayMTU int            // bytes; 0 = that interface's
	Queues      int            // queue pairs, already chosen (≥ 1)
	Log         *zap.Logger
}

// Backend is a control.Backend that can say how it does.
type Backend interface {
	control.Backend
	Status() Status
}

// Status is a backend's account of itself, cheap enough to ask for every second.
type Status struct {
	Ready       bool              // the path for the last State is programmed
	Reason      string            // why it is not; "" when Ready
	UnderlayMTU int               // bytes
	InnerMTU    int               // largest inner IP packet, bytes
	Devices     []string          // interfaces it made or adopted
	Features    map[string]string // ability → "on" or the reason why it is off
	KernelDrops map[string]uint64 // packets the kernel dropped around the path, by name
	Repairs     uint64            // objects put back after somebody else removed or changed them
	Hops        []Hop             // one per peer that traffic can reach, sorted by node
}

// Hop is how one peer is reached.
type Hop struct {
	Node     string         `json:"node"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Prefixes []netip.Prefix `json:"prefixes"`
	VNI      uint32         `json:"vni"`
	MTU      int            `json:"mtu"`
	MAC      string         `json:"mac"`

	// Traffic through userspace lanes; zero where the kernel forwards.
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
}
