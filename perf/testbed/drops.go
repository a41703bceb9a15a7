package testbed

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

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

// socketCounters says which counters of a namespace are drops, and what they are called here
// (RFC 4293, the kernel's Documentation/networking/snmp_counter.rst). A counter that another one
// includes is left out: UDP's InErrors is the sum of the buffer, memory and checksum errors, and
// IPv6 counts a packet that is too big twice.
var socketCounters = map[string]string{
	"Udp:RcvbufErrors": SocketOverflow, "Udp:MemErrors": SocketOverflow,
	"Udp6RcvbufErrors": SocketOverflow, "Udp6MemErrors": SocketOverflow,
	"Udp:InCsumErrors": SocketRefused, "Udp:NoPorts": SocketRefused,
	"Udp6InCsumErrors": SocketRefused, "Udp6NoPorts": SocketRefused,
	"Ip:InHdrErrors": IPLayer, "Ip:InAddrErrors": IPLayer, "Ip:InUnknownProtos": IPLayer,
	"Ip:InDiscards": IPLayer, "Ip:OutDiscards": IPLayer, "Ip:OutNoRoutes": IPLayer, "Ip:FragFails": IPLayer,
	"IpExt:InNoRoutes": IPLayer, "IpExt:InTruncatedPkts": IPLayer,
	"Ip6InHdrErrors": IPLayer, "Ip6InAddrErrors": IPLayer, "Ip6InUnknownProtos": IPLayer,
	"Ip6InDiscards": IPLayer, "Ip6OutDiscards": IPLayer, "Ip6OutNoRoutes": IPLayer, "Ip6FragFails": IPLayer,
	"Ip6InNoRoutes": IPLayer, "Ip6InTruncatedPkts": IPLayer,
}

// end is one end of a veth pair.
type end struct {
	ns   *Namespace
	name string
}

// KernelCounts is a reading of every drop counter of a testbed.
type KernelCounts struct {
	sums    map[string]uint64 // by the names above
	links   [][2]linkDrops    // by veth pair
	softnet uint64            // drops of all input queues of the machine
	sent    uint64            // packets that the pods sent, those that died at once included
}

type linkDrops struct {
	tx, rx uint64
	napi   bool // the end receives by NAPI, for an XDP program
}

// KernelCounts reads the counters of all devices and sockets of the testbed.
func (b *Bed) KernelCounts() (KernelCounts, error) {
	k := KernelCounts{sums: map[string]uint64{}}
	veths := map[end]linkDrops{}
	pods := map[*Namespace]netlink.LinkStatistics{}
	for _, ns := range b.namespaces() {
		for _, file := range [...]string{"snmp", "snmp6", "netstat"} {
			var data []byte
			err := ns.Do(func() (err error) {
				// Not /proc/net: that is the namespace of the process's first thread.
				data, err = os.ReadFile("/proc/thread-self/net/" + file)
				return err
			})
			if err != nil {
				return k, fmt.Errorf("testbed: read the counters of %s: %w", ns.Name, err)
			}
			countSockets(data, k.sums)
		}
		links, err := ns.Link.LinkList()
		if err != nil {
			return k, fmt.Errorf("testbed: read the devices of %s: %w", ns.Name, err)
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Name == PodDevice && a.Statistics != nil {
				pods[ns] = *a.Statistics
			}
			switch {
			case a.Statistics == nil || a.Name == "lo":
			case b.isPairEnd(end{ns, a.Name}):
				veths[end{ns, a.Name}] = linkDrops{a.Statistics.TxDropped, a.Statistics.RxDropped, a.Xdp != nil && a.Xdp.Attached}
			default:
				countDevice(l, k.sums)
			}
		}
	}
	for _, n := range b.Nodes {
		s := pods[n.Pod]
		k.sent += s.TxPackets + s.TxDropped
	}
	for _, p := range b.pairs {
		k.links = append(k.links, [2]linkDrops{veths[p[0]], veths[p[1]]})
	}
	data, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return k, fmt.Errorf("testbed: read the input queues' counters: %w", err)
	}
	k.softnet, err = softnetDrops(data)
	return k, err
}

func (b *Bed) isPairEnd(e end) bool {
	for _, p := range b.pairs {
		if p[0] == e || p[1] == e {
			return true
		}
	}
	return false
}

func countDevice(l netlink.Link, sums map[string]uint64) {
	s := l.Attrs().Statistics
	switch l.Type() {
	case "tun", "tuntap":
		sums[TunQueue] += s.TxDropped
		sums[Device] += s.RxDropped
	default:
		sums[Device] += s.TxDropped + s.RxDropped
	}
}

// Since returns what the kernel dropped since an earlier reading, by name, zeros left out.
func (k KernelCounts) Since(before KernelCounts) map[string]uint64 {
	d := map[string]uint64{}
	for name, n := range k.sums {
		d[name] = n - before.sums[name]
	}
	var veth uint64
	for i := range k.links {
		a, b := k.links[i][0].since(before.links[i][0]), k.links[i][1].since(before.links[i][1])
		veth += direction(a, b) + direction(b, a)
	}
	// The input queues' counter is the machine's; the veths' part of it is ours.
	d[Backlog] = min(veth, k.softnet-before.softnet)
	d[Veth] = veth - d[Backlog]
	for name, n := range d {
		if n == 0 {
			delete(d, name)
		}
	}
	return d
}

// SentSince returns how many packets the pods have sent since an earlier reading, a super-packet
// counted as one.
func (k KernelCounts) SentSince(before KernelCounts) uint64 { return k.sent - before.sent }

func (l linkDrops) since(before linkDrops) linkDrops {
	return linkDrops{l.tx - before.tx, l.rx - before.rx, l.napi}
}

// direction is how many packets died between two ends. Without NAPI the sender puts a packet
// straight into the receiving core's input queue; when that refuses it, the kernel counts the same
// packet as the receiver's rx_dropped and as the sender's tx_dropped (veth_xmit,
// enqueue_to_backlog). With NAPI the two are different packets.
func direction(from, to linkDrops) uint64 {
	if to.napi {
		return from.tx + to.rx
	}
	return max(from.tx, to.rx)
}

// countSockets adds up the drop counters of /proc/net/snmp and netstat (a line of names, then one
// of values, both behind the protocol's name) or of snmp6 (a name and a value on each line).
func countSockets(data []byte, sums map[string]uint64) {
	add := func(name, value string) {
		if place, ok := socketCounters[name]; ok {
			n, _ := strconv.ParseUint(value, 10, 64)
			sums[place] += n
		}
	}
	var names []string
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		switch {
		case len(fields) == 2 && !strings.HasSuffix(fields[0], ":"):
			add(fields[0], fields[1])
		case names != nil && len(names) == len(fields) && names[0] == fields[0]:
			for i := 1; i < len(fields); i++ {
				add(fields[0]+names[i], fields[i])
			}
			names = nil
		default:
			names = fields
		}
	}
}

// softnetDrops adds up the second column of /proc/net/softnet_stat: packets dropped because a
// core's input queue was full.
func softnetDrops(data []byte) (uint64, error) {
	var sum uint64
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			return 0, fmt.Errorf("testbed: /proc/net/softnet_stat: %q is not a line of it", line)
		}
		n, err := strconv.ParseUint(fields[1], 16, 64)
		if err != nil {
			return 0, fmt.Errorf("testbed: /proc/net/softnet_stat: %w", err)
		}
		sum += n
	}
	return sum, nil
}
