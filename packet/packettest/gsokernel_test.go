package packettest_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// The oracle of the oracles: a kernel that forwards from one TUN device to another.

// router is a namespace that forwards what is written to in, out of out.
type router struct {
	ns      *nettest.NS
	in, out int
}

const (
	tunIn  = "weftin"
	tunOut = "weftout"
	// readTimeout bounds the wait for a packet that never comes, in milliseconds.
	readTimeout = 10_000
)

func newRouter(t *testing.T, inFlags, outFlags uint16) *router {
	t.Helper()
	nettest.RequireKernel(t, kernel.TUN)
	r := &router{ns: nettest.New(t)}
	r.ns.Do(func() {
		r.in = openTUN(t, tunIn, inFlags)
		r.out = openTUN(t, tunOut, outFlags)
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(r.ns.Sysctl("ipv4/ip_forward", "1"))
	must(r.ns.Sysctl("ipv6/conf/all/forwarding", "1"))
	must(r.ns.Sysctl("ipv4/conf/all/rp_filter", "0"))
	must(r.ns.LinkUp(tunIn))
	must(r.ns.LinkUp(tunOut))
	// Traffic's two destinations, and a way back for source checks.
	for prefix, dev := range map[string]string{
		"10.244.2.0/24": tunOut, "fd00:2::/64": tunOut, "10.244.1.0/24": tunIn, "fd00:1::/64": tunIn,
	} {
		must(r.ns.AddRoute(netip.MustParsePrefix(prefix), netip.Addr{}, dev))
	}
	return r
}

func openTUN(t *testing.T, name string, flags uint16) int {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatalf("TUNSETIFF %s: %v", name, err)
	}
	return fd
}

func (r *router) write(t *testing.T, b []byte) {
	t.Helper()
	if _, err := unix.Write(r.in, b); err != nil {
		t.Fatalf("write %x: %v", b[:min(len(b), 80)], err)
	}
}

// read returns the next packet that comes out and is ours (the kernel also solicits routers), with
// its front bytes of device header.
func (r *router) read(t *testing.T, front int) []byte {
	t.Helper()
	for {
		fds := []unix.PollFd{{Fd: int32(r.out), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, readTimeout)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("nothing came out: %v", err)
		}
		b := make([]byte, 1<<17)
		if n, err = unix.Read(r.out, b); err != nil {
			t.Fatal(err)
		}
		b = b[:n]
		if src, ok := packet.SrcAddr(b[front:]); ok && (src.Is4() || src.As16()[3] == 1) {
			return b
		}
	}
}

// forwarded is a packet with its TTL counted down, as a router does.
func forwarded(b []byte) []byte {
	b = bytes.Clone(b)
	if b[0]>>4 == 6 {
		b[7]--
		return b
	}
	b[8]--
	packet.PutIPv4Checksum(b)
	return b
}

// TestSplitOracleIsTheKernels lets the kernel cut the super-packets, for a device that takes none.
func TestSplitOracleIsTheKernels(t *testing.T) {
	router := newRouter(t, unix.IFF_VNET_HDR, 0)
	r, kinds := rand.New(rand.NewPCG(4, 4)), map[packettest.GSO]int{}
	for range 30 {
		for _, s := range packettest.CoalesceOracle(packettest.Traffic(r, 128, 1450)) {
			if s.GSO == packettest.GSONone {
				continue
			}
			router.write(t, s.Vnet())
			s.Packet = forwarded(s.Packet)
			want, err := packettest.SplitOracle(s)
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if got := router.read(t, 0); !bytes.Equal(got, want[i]) {
					t.Fatalf("type %d, segment %d of %d:\nkernel %x\noracle %x", s.GSO, i, len(want), got[:min(80, len(got))], want[i][:min(80, len(want[i]))])
				}
			}
			kinds[s.GSO]++
		}
	}
	for _, kind := range []packettest.GSO{packettest.GSOTCPv4, packettest.GSOTCPv6, packettest.GSOUDP} {
		if kinds[kind] == 0 {
			t.Errorf("no super-packet of type %d was compared", kind)
		}
	}
}

// groLooksInto is false for packets that the kernel's GRO lets pass by at once, ahead of packets of
// their own flow that it holds. That is a liberty of the kernel's which CoalesceLegal does not give.
func groLooksInto(b []byte) bool {
	v, drop := packet.ParseIP(b)
	if drop != packet.Alive || !v.IPv4ChecksumOK() || b[0] == 0x46 || !v.VerifyTransport() {
		return false
	}
	l4, _ := v.Transport()
	return v.Protocol() != packet.ProtoUDP || v.Len() > l4+packet.UDPHeader && (b[l4+6] != 0 || b[l4+7] != 0)
}

// TestKernelGROIsLegal lets the kernel's GRO merge: CoalesceLegal may refuse nothing that it does.
// How much it merges is a matter of timing and not judged, only that it does.
func TestKernelGROIsLegal(t *testing.T) {
	nettest.RequireTool(t, "ethtool", "unshare")
	router := newRouter(t, unix.IFF_VNET_HDR|unix.IFF_NAPI, unix.IFF_VNET_HDR)
	offloads := unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | unix.TUN_F_USO4 | unix.TUN_F_USO6
	if err := unix.IoctlSetInt(router.out, unix.TUNSETOFFLOAD, offloads); err != nil {
		t.Fatalf("TUNSETOFFLOAD: %v", err)
	}
	router.ns.MustRun(t, "ethtool", "-K", tunIn, "rx-udp-gro-forwarding", "on")
	// GRO holds packets for 20 ms instead of until the end of each write. sysfs shows the devices of
	// the namespace that it was mounted in.
	router.ns.MustRun(t, "unshare", "--mount", "sh", "-c",
		"mount -t sysfs sysfs /sys && echo 20000000 > /sys/class/net/"+tunIn+"/gro_flush_timeout")

	r, kinds := rand.New(rand.NewPCG(5, 5)), map[packettest.GSO]int{}
	for round := range 20 {
		var in [][]byte
		lastID := map[string]string{}
		for _, b := range packettest.Traffic(r, 128, 1450) {
			if !groLooksInto(b) {
				continue
			}
			if b[0]>>4 == 4 && b[6]&0x40 == 0 {
				// From Linux 6.18 on, GRO merges what shares an identification even without DF;
				// CoalesceLegal, like older kernels, does not: cut again, it would be another one.
				flow, id := string(b[12:24]), string(b[4:6])
				if lastID[flow] == id {
					continue
				}
				lastID[flow] = id
			}
			router.write(t, packettest.Super{Packet: b}.Vnet())
			in = append(in, forwarded(b))
		}
		var out []packettest.Super
		for left := len(in); left > 0; {
			s, err := packettest.ParseVnet(router.read(t, 10))
			if err != nil {
				t.Fatal(err)
			}
			pieces, err := packettest.SplitOracle(s)
			if err != nil {
				t.Fatalf("the kernel gave %+v: %v", s, err)
			}
			left -= len(pieces)
			out = append(out, s)
			kinds[s.GSO]++
		}
		if err := packettest.CoalesceLegal(in, out); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("by gso_type: %v", kinds)
	for _, kind := range []packettest.GSO{packettest.GSOTCPv4, packettest.GSOTCPv6, packettest.GSOUDP} {
		if kinds[kind] == 0 {
			t.Errorf("the kernel made no super-packet of type %d", kind)
		}
	}
}
