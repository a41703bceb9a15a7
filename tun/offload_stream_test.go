package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
)

// joined is two namespaces whose offload ports are joined by a pair of lanes in this process:
//
//	sockets in a ── weft0 ── Recv → between → Send ── weft0 ── sockets in b
type joined struct {
	a, b           *nettest.NS
	toB, toA       *packet.Drops // written by the lanes
	addrsA, addrsB [2]netip.Addr // v4, v6
}

// between changes a batch on its way from one device to the other.
type between func(*packet.Batch)

// joinDevices opens the two ports and starts the lanes. out makes what a lane does to its batches.
func joinDevices(t testing.TB, mtu int, open func(Config, int) (packet.Port, error), out func() between) *joined {
	t.Helper()
	nettest.RequireKernel(t, kernel.TUN)
	j := &joined{a: nettest.New(t), b: nettest.New(t)}
	var ports [2]packet.Port
	for i, ns := range []*nettest.NS{j.a, j.b} {
		var err error
		ns.Do(func() { ports[i], err = open(Config{Name: "weft0", MTU: mtu}, 1) })
		if err != nil {
			t.Fatal(err)
		}
		l, err := ns.Netlink().LinkByName("weft0")
		if err != nil {
			t.Fatal(err)
		}
		if err := ns.Netlink().LinkSetMTU(l, mtu); err != nil {
			t.Fatal(err)
		}
		if err := ns.LinkUp("weft0"); err != nil {
			t.Fatal(err)
		}
		text := []string{fmt.Sprintf("10.244.0.%d/24", i+1)}
		if mtu >= packet.MinIPv6MTU {
			text = append(text, fmt.Sprintf("fd00:10:244::%d/64", i+1))
		}
		addrs := &j.addrsA
		if i == 1 {
			addrs = &j.addrsB
		}
		for k, p := range nettest.Prefixes(text...) {
			addrs[k] = p.Addr()
		}
		addAddrsTo(t, ns, text...)
	}
	var lanes sync.WaitGroup
	t.Cleanup(func() {
		for _, p := range ports {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		lanes.Wait()
	})
	j.toB, j.toA = lane(t, &lanes, ports[0], ports[1], mtu, out()), lane(t, &lanes, ports[1], ports[0], mtu, out())
	return j
}

// lane carries from one port to the other until one closes.
func lane(t testing.TB, wg *sync.WaitGroup, from, to packet.Port, mtu int, change between) *packet.Drops {
	drops := &packet.Drops{}
	wg.Go(func() {
		runtime.LockOSThread()
		b := packet.NewBatch(packet.BatchSize, mtu+64)
		for {
			err := from.Queues()[0].Recv(b)
			if err == nil {
				change(b)
				b.Compact(drops)
				err = to.Queues()[0].Send(b)
				b.Compact(drops)
			}
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
		}
	})
	return drops
}

func addAddrsTo(t testing.TB, ns *nettest.NS, addrs ...string) {
	t.Helper()
	prefixes := nettest.Prefixes(addrs...)
	if err := ns.AddAddrs("weft0", prefixes...); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); len(prefixes) > 0; {
		routes, err := ns.Netlink().RouteGet(prefixes[0].Addr().AsSlice())
		if err == nil && routes[0].Type == unix.RTN_LOCAL {
			prefixes = prefixes[1:]
		} else if time.Now().After(deadline) {
			t.Fatalf("%v is not local: %v, %v", prefixes[0], routes, err)
		}
	}
}

// What stands for the ways between two nodes.
func untouched() between { return func(*packet.Batch) {} }

// finished is plain VXLAN: checksums are made whole, and verified on the other side.
func finished() between {
	return func(b *packet.Batch) {
		for i := range b.Packets() {
			packet.FinishPartial(&b.Packets()[i], 0)
		}
	}
}

// rough loses, doubles, reorders and delays packets.
func rough() between {
	r := rand.New(rand.NewPCG(1, 9))
	return func(b *packet.Batch) {
		packets := b.Packets()
		for i := range packets {
			switch r.IntN(400) {
			case 0:
				packets[i].Drop = packet.QueueFull
			case 1, 2:
				if k := r.IntN(len(packets)); k != i {
					packets[i], packets[k] = packets[k], packets[i]
				}
			case 3:
				if n := b.Len(); n < len(b.Slots()) {
					p := &b.Slots()[n]
					p.Resize(copy(p.Reset(), packets[i].Bytes()))
					if start, offset, ok := packets[i].Partial(); ok {
						p.SetPartial(start, offset)
					}
					b.SetLen(n + 1)
				}
			}
		}
	}
}

// pattern is an endless byte stream that repeats nowhere near: position says what the bytes are.
func pattern(b []byte, at uint64) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], (at+uint64(i))*0x9e3779b97f4a7c15)
	}
}

// transfer sends n bytes over TCP from namespace a to b and verifies every one.
func transfer(t *testing.T, from, to *nettest.NS, addr netip.Addr, n int) {
	t.Helper()
	var l net.Listener
	var err error
	to.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	result := make(chan error, 2)
	go func() { result <- receive(l, n) }()
	from.Do(func() {
		d := net.Dialer{Timeout: patience}
		var c net.Conn
		if c, err = d.Dial("tcp", l.Addr().String()); err != nil {
			return
		}
		go func() {
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(3 * patience)); err != nil {
				result <- err
				return
			}
			block := make([]byte, 1<<16)
			for at := 0; at < n; at += len(block) {
				pattern(block, uint64(at))
				if _, err := c.Write(block); err != nil {
					result <- fmt.Errorf("write at %d: %w", at, err)
					return
				}
			}
			result <- nil
		}()
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-result; err != nil {
			t.Fatalf("%v, %d bytes: %v", addr, n, err)
		}
	}
}

func receive(l net.Listener, n int) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * patience)); err != nil {
		return err
	}
	got, want := make([]byte, 1<<16), make([]byte, 1<<16)
	for at := 0; at < n; at += len(got) {
		if _, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("read at %d: %w", at, err)
		}
		if pattern(want, uint64(at)); !bytes.Equal(got, want) {
			return fmt.Errorf("wrong bytes in the 64 KB from %d", at)
		}
	}
	return nil
}

// TestOffloadTCP: real TCP over two real devices, every byte verified: with checksums left to the
// receiving kernel, with checksums finished in between, and over a path that loses and reorders.
func TestOffloadTCP(t *testing.T) {
	for name, way := range map[string]func() between{"untouched": untouched, "finished": finished, "rough": rough} {
		for _, mtu := range []int{576, 1280, 1450, 9000} {
			t.Run(fmt.Sprintf("%s/%d", name, mtu), func(t *testing.T) {
				n := 32 << 20
				if name == "rough" || mtu == 576 {
					n = 4 << 20
				}
				j := joinDevices(t, mtu, OpenOffload, way)
				for _, addr := range j.addrsB {
					if addr.IsValid() {
						transfer(t, j.a, j.b, addr, n)
					}
				}
				for _, addr := range j.addrsA { // and the other way
					if addr.IsValid() {
						transfer(t, j.b, j.a, addr, n)
					}
				}
			})
		}
	}
}

// TestOffloadWithPlain: the two ports of this room understand each other.
func TestOffloadWithPlain(t *testing.T) {
	first := true
	j := joinDevices(t, 1450, func(cfg Config, n int) (packet.Port, error) {
		if first {
			first = false
			return OpenOffload(cfg, n)
		}
		return Open(cfg, n)
	}, untouched)
	for i := range j.addrsA {
		transfer(t, j.a, j.b, j.addrsB[i], 8<<20)
		transfer(t, j.b, j.a, j.addrsA[i], 8<<20)
	}
}

// TestOffloadUDP: datagrams sent with UDP_SEGMENT arrive one by one with the boundaries they were
// sent with, at a socket with UDP_GRO and at one without.
func TestOffloadUDP(t *testing.T) {
	nettest.RequireKernel(t, kernel.UDPSegment, kernel.UDPGRO)
	for name, way := range map[string]func() between{"untouched": untouched, "finished": finished} {
		t.Run(name, func(t *testing.T) {
			j := joinDevices(t, 1450, OpenOffload, way)
			for _, addr := range j.addrsB {
				for _, gro := range []bool{false, true} {
					for _, size := range []int{1, 36, 500, 1200, 1402} {
						datagrams(t, j, addr, size, gro)
					}
				}
			}
		})
	}
}

// datagrams sends bursts of up to 64 KB by one system call each, the last datagram of each shorter,
// and waits for all of a burst, so that nothing may be lost.
func datagrams(t *testing.T, j *joined, addr netip.Addr, size int, gro bool) {
	t.Helper()
	var in, out *net.UDPConn
	var err error
	j.b.Do(func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	j.a.Do(func() { out, err = net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr)) })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	option(t, out, unix.SOL_UDP, unix.UDP_SEGMENT, size)
	option(t, in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	if gro {
		option(t, in, unix.SOL_UDP, unix.UDP_GRO, 1)
	}
	if addr.Is6() && size == 1402 {
		size -= 20 // does not fit behind an IPv6 header
		option(t, out, unix.SOL_UDP, unix.UDP_SEGMENT, size)
	}
	buf, oob := make([]byte, 1<<16), make([]byte, 64)
	for burst := range 20 {
		segments := min(1+burst*7, 128, 65000/size)
		want := make([]byte, 1<<16)
		pattern(want, uint64(burst)<<32)
		want = want[:segments*size-size/2]
		if _, err := out.Write(want); err != nil {
			t.Fatalf("%v, size %d: burst of %d: %v", addr, size, segments, err)
		}
		for at := 0; at < len(want); {
			if err := in.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			n, on, _, _, err := in.ReadMsgUDPAddrPort(buf, oob)
			if err != nil {
				t.Fatalf("%v, size %d, gro %v: burst of %d, %d of %d bytes: %v", addr, size, gro, segments, at, len(want), err)
			}
			step := n
			if gro {
				step = groSize(t, oob[:on], n)
			}
			if expect := min(size, len(want)-at); step != expect && !(step == n && n == expect) {
				t.Fatalf("%v, size %d, gro %v: a datagram of %d bytes at %d", addr, size, gro, step, at)
			}
			if at+n > len(want) || !bytes.Equal(buf[:n], want[at:at+n]) {
				t.Fatalf("%v, size %d, gro %v: wrong bytes at %d", addr, size, gro, at)
			}
			at += n
		}
	}
}

func groSize(t *testing.T, oob []byte, n int) int {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_UDP && m.Header.Type == unix.UDP_GRO {
			return min(n, int(binary.NativeEndian.Uint32(m.Data)))
		}
	}
	return n
}

func option(t *testing.T, c syscall.Conn, level, name, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, name, value) }); err != nil || set != nil {
		t.Fatal(err, set)
	}
}

// TestOffloadIperf: somebody else's generator over the pair, both families, several flows.
func TestOffloadIperf(t *testing.T) {
	nettest.RequireTool(t, "iperf3")
	j := joinDevices(t, 1450, OpenOffload, finished)
	for _, addr := range j.addrsB {
		server := j.b.MustStart(t, "iperf3", "-s", "-1", "-B", addr.String())
		var out string
		var err error
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			// The server needs a moment to listen; the client says so by failing.
			if out, err = j.a.Run("iperf3", "-c", addr.String(), "-n", "256M", "-P", "4", "-C", "cubic"); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, server.Output())
		}
		t.Logf("%s", out[max(0, len(out)-300):])
	}
}

// BenchmarkOffloadTCP streams megabytes through both devices and the lane between them.
func BenchmarkOffloadTCP(b *testing.B) {
	for _, c := range []struct {
		name string
		way  func() between
		v6   int
	}{{"untouched4", untouched, 0}, {"untouched6", untouched, 1}, {"finished4", finished, 0}} {
		b.Run(c.name, func(b *testing.B) {
			j := joinDevices(b, 1450, OpenOffload, c.way)
			var l net.Listener
			var conn net.Conn
			var err error
			j.b.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(j.addrsB[c.v6], 0).String()) })
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			done := make(chan error, 1)
			go func() {
				c, err := l.Accept()
				if err == nil {
					_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
					c.Close()
				}
				done <- err
			}()
			j.a.Do(func() { conn, err = net.Dial("tcp", l.Addr().String()) })
			if err != nil {
				b.Fatal(err)
			}
			raw, err := conn.(*net.TCPConn).SyscallConn()
			if err != nil {
				b.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
			}); err != nil {
				b.Fatal(err)
			}
			block := make([]byte, 1<<20)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := conn.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			conn.Close()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
