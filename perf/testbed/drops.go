package testbed

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"weft/perf/site"
)

// socketCounters says which counters of a namespace are drops, and what they are called here
// (RFC 4293, the kernel's Documentation/networking/snmp_counter.rst). A counter that another one
// includes is left out: UDP's InErrors is the sum of the buffer, memory and checksum errors, and
// IPv6 counts a packet that is too big twice.
var socketCounters = map[string]string{
	"Udp:RcvbufErrors": site.SocketOverflow, "Udp:MemErrors": site.SocketOverflow,
	"Udp6RcvbufErrors": site.SocketOverflow, "Udp6MemErrors": site.SocketOverflow,
	"Udp:InCsumErrors": site.SocketRefused, "Udp:NoPorts": site.SocketRefused,
	"Udp6InCsumErrors": site.SocketRefused, "Udp6NoPorts": site.SocketRefused,
	"Ip:InHdrErrors": site.IPLayer, "Ip:InAddrErrors": site.IPLayer, "Ip:InUnknownProtos": site.IPLayer,
	"Ip:InDiscards": site.IPLayer, "Ip:OutDiscards": site.IPLayer, "Ip:OutNoRoutes": site.IPLayer, "Ip:FragFails": site.IPLayer,
	"IpExt:InNoRoutes": site.IPLayer, "IpExt:InTruncatedPkts": site.IPLayer,
	"Ip6InHdrErrors": site.IPLayer, "Ip6InAddrErrors": site.IPLayer, "Ip6InUnknownProtos": site.IPLayer,
	"Ip6InDiscards": site.IPLayer, "Ip6OutDiscards": site.IPLayer, "Ip6OutNoRoutes": site.IPLayer, "Ip6FragFails": site.IPLayer,
	"Ip6InNoRoutes": site.IPLayer, "Ip6InTruncatedPkts": site.IPLayer,
}

// end is one end of a veth pair.
type end struct {
	ns   *Namespace
	name string
}

// KernelCounts is a reading of every drop counter of a testbed, and of the packets that no generator counts.
type KernelCounts struct {
	sums      map[string]uint64 // by the names above
	links     [][2]linkDrops    // by veth pair
	tunnels   uint64            // what the kernel's tunnel devices could not send
	softnet   uint64            // drops of all input queues of the machine
	segments  Segments
	multicast uint64 // packets that the nodes themselves sent to groups: MLD, IGMP
}

// Segments are the TCP segments of the pods. The pods of a testbed speak with each other only, so what was sent and not
// received was lost.
type Segments = site.Segments

type linkDrops struct {
	tx, rx uint64
	napi   bool // the end receives by NAPI, for an XDP program
}

// KernelCounts reads the counters of all devices and sockets of the testbed.
func (b *Bed) KernelCounts() (KernelCounts, error) {
	k := KernelCounts{sums: map[string]uint64{}}
	veths := map[end]linkDrops{}
	for _, ns := range b.namespaces() {
		counters, err := ns.counters()
		if err != nil {
			return k, fmt.Errorf("testbed: read the counters of %s: %w", ns.Name(), err)
		}
		for name, place := range socketCounters {
			k.sums[place] += counters[name]
		}
		if b.isPod(ns) {
			k.segments.Sent += counters["Tcp:OutSegs"] + counters["Tcp:RetransSegs"] // RFC 4022: the first has no retransmissions
			k.segments.Received += counters["Tcp:InSegs"]
		} else {
			k.multicast += counters["IpExt:OutMcastPkts"] + counters["Ip6OutMcastPkts"]
		}
		links, err := ns.Netlink().LinkList()
		if err != nil {
			return k, fmt.Errorf("testbed: read the devices of %s: %w", ns.Name(), err)
		}
		for _, l := range links {
			a := l.Attrs()
			switch {
			case a.Statistics == nil || a.Name == "lo":
			case b.isPairEnd(end{ns, a.Name}):
				veths[end{ns, a.Name}] = linkDrops{a.Statistics.TxDropped, a.Statistics.RxDropped, a.Xdp != nil && a.Xdp.Attached}
			default:
				k.countDevice(l)
			}
		}
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

func (b *Bed) isPod(ns *Namespace) bool {
	return slices.ContainsFunc(b.Nodes, func(n *Node) bool { return n.Pod == ns })
}

func (b *Bed) isPairEnd(e end) bool {
	for _, p := range b.pairs {
		if p[0] == e || p[1] == e {
			return true
		}
	}
	return false
}

func (k *KernelCounts) countDevice(l netlink.Link) {
	s := l.Attrs().Statistics
	switch l.Type() {
	case "tun", "tuntap":
		k.sums[site.TunQueue] += s.TxDropped
		k.sums[site.Device] += s.RxDropped
	case "vxlan", "geneve", "ipip", "sit":
		k.tunnels += s.TxDropped
		k.sums[site.Device] += s.RxDropped
	default:
		k.sums[site.Device] += s.TxDropped + s.RxDropped
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
	// A tunnel counts what the device below it refused (iptunnel_xmit_stats, of veth_xmit's NET_XMIT_DROP) as well as
	// what it drops itself.
	tunnels := k.tunnels - before.tunnels
	d[site.Device] += tunnels - min(tunnels, veth)
	// The input queues' counter is the machine's; the veths' part of it is ours.
	d[site.Backlog] = min(veth, k.softnet-before.softnet)
	d[site.Veth] = veth - d[site.Backlog]
	for name, n := range d {
		if n == 0 {
			delete(d, name)
		}
	}
	return d
}

// SegmentsSince returns what the pods' TCP did since an earlier reading.
func (k KernelCounts) SegmentsSince(before KernelCounts) Segments {
	return Segments{Sent: k.segments.Sent - before.segments.Sent, Received: k.segments.Received - before.segments.Received}
}

// MulticastSince returns how many packets the nodes have sent to groups since an earlier reading.
func (k KernelCounts) MulticastSince(before KernelCounts) uint64 {
	return k.multicast - before.multicast
}

// Same says that nothing moved in the testbed between two readings, as far as it is counted here.
func (k KernelCounts) Same(other KernelCounts) bool {
	return maps.Equal(k.sums, other.sums) && slices.Equal(k.links, other.links) && k.tunnels == other.tunnels && k.segments == other.segments
}

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

// counters reads what the namespace's protocols count, by name.
func (ns *Namespace) counters() (map[string]uint64, error) {
	counters := map[string]uint64{}
	for _, file := range [...]string{"snmp", "snmp6", "netstat"} {
		err := ns.Do(func() error {
			// Not /proc/net: that is the namespace of the process's first thread.
			data, err := os.ReadFile("/proc/thread-self/net/" + file)
			parseCounters(data, counters)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return counters, nil
}

// parseCounters reads /proc/net/snmp and netstat (a line of names, then one of values, both behind the
// protocol's name: "Udp:NoPorts") or snmp6 (a name and a value on each line: "Udp6NoPorts").
func parseCounters(data []byte, counters map[string]uint64) {
	add := func(name, value string) {
		n, err := strconv.ParseUint(value, 10, 64)
		if err == nil { // some settings among the counters are negative
			counters[name] = n
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
