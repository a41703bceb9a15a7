// Package site is where contenders are measured, in words that every such place has: site/netns makes its hosts out of namespaces,
// site/remote asks agents on real ones. Package run measures at either and does not know which.
package site

import (
	"context"
	"time"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
)

// Site is a place to measure at. One goroutine uses it.
type Site interface {
	// Hosts are the fingerprints of its machines, the one that asks first where it is among them.
	Hosts() []result.Host
	// Settings are those of a run that only the site knows: MTU, nodes, layout and what else rows depend on.
	Settings() result.Settings
	// Open brings a contender up, by the name that the run knows it by: a Setup for each path. A contender that cannot run here is an
	// *UnsupportedError. On an error nothing of it is left.
	Open(ctx context.Context, contender string) ([]Setup, error)
	// Alone starts the generators where nothing but they is measured; nil where there is no such place.
	Alone(ctx context.Context) (Alone, error)
	// Close takes down whatever Open and Alone made. Idempotent.
	Close() error
}

// Setup is one contender that is up between two ends, and what can be read around them.
type Setup interface {
	About() About
	// Generate runs one test from the near end to the far one. The time is what a generator used that has ended by now.
	Generate(ctx context.Context, t probe.Selection, d time.Duration) (probe.Result, machine.CPUTime, error)
	// Count reads the packet counters around the generators.
	Count(ctx context.Context) (Reading, error)
	// Times is the processor time that each process has used so far, by its name in reports.
	Times(ctx context.Context) (map[string]machine.CPUTime, error)
	// Busy is what the machines at both ends did so far.
	Busy(ctx context.Context) (machine.Busy, error)
	// Up brings the setup up for the sample that follows, where it cannot be up while others are measured, and Down takes it down. Most are up
	// all the time from Open on: then nothing happens, and it is not fresh.
	Up(ctx context.Context) (fresh bool, err error)
	Down(ctx context.Context) error
	// Dead is why the setup takes no more samples; nil = it does.
	Dead() error
}

// About is what does not change while a Setup is up.
type About struct {
	Contender string
	Path      string // from which host to which; "" where there is only one path
	InnerMTU  int    // bytes
	Super     bool   // it hands the kernel super-packets: what that drops as one may be many
}

// Generator is the process that both ends of a test are called in reports.
const Generator = "bench"

// Alone is a pair of generators between two places without a contender.
type Alone interface {
	Generate(ctx context.Context, t probe.Selection, d time.Duration) (probe.Result, error)
	Close() error
}

// Reading is the state of all packet counters at a moment.
type Reading interface {
	// Same says that nothing has moved since the other one was read.
	Same(Reading) bool
	// Since is what was counted since the other one.
	Since(before Reading) (Moved, error)
}

// Moved is what the counters around the generators counted during a sample.
type Moved struct {
	Lanes     []Lane
	Kernel    map[string]uint64 // what the kernel dropped, by the names below
	Segments  Segments
	Multicast uint64 // packets that the nodes sent of themselves

	// Open is set where others' packets are in the counters, too, and some places are not counted: no account from end to end adds up.
	Open bool
}

// Segments are the TCP segments of the generators: what was sent and not received was lost.
type Segments struct{ Sent, Received uint64 }

// Names of the places where the kernel drops packets, as in reports.
const (
	SocketOverflow = "socket-overflow" // a socket's receive buffer was full
	SocketRefused  = "socket-refused"  // a wrong checksum, or nobody listens
	IPLayer        = "ip"              // no route, a wrong address or header, no fragment allowed
	Veth           = "veth"            // a veth pair, other than by the backlog
	Backlog        = "backlog"         // a core's input queue (net.core.netdev_max_backlog)
	TunQueue       = "tun-queue"       // the queue of a TUN or TAP device was full
	Device         = "device"          // any other device of a node
)

// Drops are packets that the kernel dropped, and says so to a contender's sockets only.
type Drops struct {
	Kernel map[string]uint64 // by name
	// AtVeth of the packets in Kernel and in the lanes' drops have died at a veth, which counts them too.
	AtVeth uint64
}

// Lane is one lane's packets: Received = Sent + Σ Drops. Copies that a lane made to flood count as received.
type Lane struct {
	Node, Name     string
	Received, Sent uint64
	Drops          map[string]uint64 // by reason
	Stages         []Stage           // in the order of a packet's way
}

// Stage is one step of a lane. Nanos is the time its Timed packets took, waiting excluded.
type Stage struct {
	Name                  string
	Packets, Timed, Nanos uint64
}

// UnsupportedError is a contender, or a whole run, that a machine or this build of weft cannot carry out.
type UnsupportedError struct{ Reason string }

func (e *UnsupportedError) Error() string { return "not supported here: " + e.Reason }
