package testbed

import (
	"maps"
	"testing"

	"weft/perf/site"
)

func TestParseCounters(t *testing.T) {
	got := map[string]uint64{}
	parseCounters([]byte(`Ip: Forwarding DefaultTTL InReceives InHdrErrors
Ip: 1 64 1000 1
Tcp: RtoAlgorithm MaxConn InSegs OutSegs RetransSegs
Tcp: 1 -1 7 8 9
Udp: InDatagrams NoPorts
Udp: 900 10
`), got)
	parseCounters([]byte("Udp6InDatagrams 5\nUdp6RcvbufErrors                \t100\n"), got)
	parseCounters([]byte("TcpExt: SyncookiesSent TWRecycled\nTcpExt: 1 2\nIpExt: InNoRoutes OutMcastPkts\nIpExt: 3 9\n"), got)
	want := map[string]uint64{
		"Ip:Forwarding": 1, "Ip:DefaultTTL": 64, "Ip:InReceives": 1000, "Ip:InHdrErrors": 1,
		"Tcp:RtoAlgorithm": 1, "Tcp:InSegs": 7, "Tcp:OutSegs": 8, "Tcp:RetransSegs": 9, "Udp:InDatagrams": 900, "Udp:NoPorts": 10,
		"Udp6InDatagrams": 5, "Udp6RcvbufErrors": 100, "TcpExt:SyncookiesSent": 1, "TcpExt:TWRecycled": 2, "IpExt:InNoRoutes": 3, "IpExt:OutMcastPkts": 9,
	}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestKernelCountsSince(t *testing.T) {
	before := KernelCounts{sums: map[string]uint64{site.TunQueue: 5, site.IPLayer: 1}, links: [][2]linkDrops{{}, {{tx: 1, rx: 1}, {}}}, softnet: 100}
	now := KernelCounts{
		sums: map[string]uint64{site.TunQueue: 15, site.IPLayer: 1},
		links: [][2]linkDrops{
			{{tx: 7}, {rx: 7}},                    // the same seven packets, seen from both ends
			{{tx: 3, rx: 1}, {rx: 4, napi: true}}, // two that the ring refused, four that died behind it
		},
		softnet:   107,
		segments:  Segments{Sent: 12, Received: 10},
		multicast: 3,
	}
	if n := now.SegmentsSince(before); n != (Segments{Sent: 12, Received: 10}) {
		t.Errorf("segments %+v", n)
	}
	if n := now.MulticastSince(before); n != 3 {
		t.Errorf("%d packets to groups", n)
	}
	if now.Same(before) || !now.Same(now) {
		t.Error("a testbed where packets died is quiet, or a quiet one is not")
	}
	got := now.Since(before)
	want := map[string]uint64{site.TunQueue: 10, site.Backlog: 7, site.Veth: 6}
	if !maps.Equal(got, want) {
		t.Errorf("dropped %v, want %v", got, want)
	}
	// A vxlan device counts what the veths below it refused, thirteen at most, and two of its own.
	now.tunnels = 15
	want[site.Device] = 2
	if got := now.Since(before); !maps.Equal(got, want) {
		t.Errorf("with a tunnel's drops %v, want %v", got, want)
	}
}

func TestSoftnetDrops(t *testing.T) {
	got, err := softnetDrops([]byte("00000007 0000000a 00000000\n00000e5a 00000010 00000000\n"))
	if err != nil || got != 26 {
		t.Errorf("%d, %v", got, err)
	}
	for _, text := range []string{"00000007\n", "x y\n"} {
		if _, err := softnetDrops([]byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func TestParseStat(t *testing.T) {
	group, got, err := parseStat([]byte("42 (a) b) S 1 41 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 5 0 100"))
	if err != nil || group != 41 || got.User.Seconds() != 1.5 || got.System.Seconds() != 0.5 || got.Total().Seconds() != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if _, _, err := parseStat([]byte("42 (a) S 1")); err == nil {
		t.Error("half a line was read")
	}
}
