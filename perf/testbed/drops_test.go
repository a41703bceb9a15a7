package testbed

import (
	"maps"
	"testing"
)

func TestCountSockets(t *testing.T) {
	sums := map[string]uint64{}
	countSockets([]byte(`Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors OutNoRoutes
Ip: 1 64 1000 1 2 3
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 900 10 500 800 20 7 30 0 40
UdpLite: InDatagrams NoPorts
UdpLite: 5 5
`), sums)
	countSockets([]byte("Udp6InDatagrams 5\nUdp6RcvbufErrors                \t100\nIp6OutNoRoutes 1000\n"), sums)
	countSockets([]byte("TcpExt: SyncookiesSent TWRecycled\nTcpExt: 1 1\nIpExt: InNoRoutes InMcastPkts\nIpExt: 10000 9\n"), sums)
	want := map[string]uint64{SocketOverflow: 20 + 40 + 100, SocketRefused: 10 + 30, IPLayer: 1 + 2 + 3 + 1000 + 10000}
	if !maps.Equal(sums, want) {
		t.Errorf("counted %v, want %v", sums, want)
	}
}

func TestKernelCountsSince(t *testing.T) {
	before := KernelCounts{sums: map[string]uint64{TunQueue: 5, IPLayer: 1}, links: [][2]linkDrops{{}, {{tx: 1, rx: 1}, {}}}, softnet: 100}
	now := KernelCounts{
		sums: map[string]uint64{TunQueue: 15, IPLayer: 1},
		links: [][2]linkDrops{
			{{tx: 7}, {rx: 7}},                    // the same seven packets, seen from both ends
			{{tx: 3, rx: 1}, {rx: 4, napi: true}}, // two that the ring refused, four that died behind it
		},
		softnet: 107,
	}
	got := now.Since(before)
	want := map[string]uint64{TunQueue: 10, Backlog: 7, Veth: 6}
	if !maps.Equal(got, want) {
		t.Errorf("dropped %v, want %v", got, want)
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
	got, err := parseStat([]byte("42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 5 0 100"))
	if err != nil || got.Seconds() != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseStat([]byte("42 (a) S 1")); err == nil {
		t.Error("half a line was read")
	}
}
