package xdp

import (
	"net/netip"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"weft/packet"
	"weft/packet/packettest"
)

// memoryRing is a ring without a kernel: what a test needs to time our side of it alone.
func memoryRing[T any](size uint32) ring[T] {
	words := make([]uint32, 48) // on cache lines of their own, as the kernel lays them out
	return ring[T]{producer: &words[0], consumer: &words[16], flags: &words[32], entries: make([]T, size), mask: size - 1}
}

// memoryPair is a receiver and a sender over such rings.
func memoryPair(b *testing.B) (*receiver, *sender, *packet.Batch) {
	const n = 2048
	u, err := newUMEM(2*n+reserved, smallFrame)
	if err != nil {
		b.Fatal(err)
	}
	r := &receiver{umem: u, rx: memoryRing[unix.XDPDesc](n), fill: memoryRing[uint64](n)}
	for _, f := range u.draw(n) {
		r.fill.put(f)
	}
	r.fill.submit()
	s := &sender{umem: u, tx: memoryRing[unix.XDPDesc](n), completion: memoryRing[uint64](n), free: u.draw(n)}
	return r, s, u.batch(packet.BatchSize)
}

// deliver plays the kernel's part of receiving n frames of length bytes.
func deliver(r *receiver, n, length int) {
	for range n {
		f := r.fill.entries[*r.fill.consumer&r.fill.mask]
		*r.fill.consumer++
		r.rx.entries[*r.rx.producer&r.rx.mask] = unix.XDPDesc{Addr: f + packet.Headroom, Len: uint32(length)}
		*r.rx.producer++
	}
}

// complete plays the kernel's part of sending.
func complete(s *sender) {
	for ; *s.tx.consumer != *s.tx.producer; *s.tx.consumer++ {
		s.completion.entries[*s.completion.producer&s.completion.mask] = s.tx.entries[*s.tx.consumer&s.tx.mask].Addr
		*s.completion.producer++
	}
}

// BenchmarkRings is a packet's way through our side of all four rings, headers included: without system calls and
// without the kernel's copies. ns/op is per packet.
func BenchmarkRings(b *testing.B) {
	for _, family := range []int{0, 1} {
		for _, size := range []int{64, 1360} {
			b.Run([]string{"v4", "v6"}[family]+"/"+strconv.Itoa(size), func(b *testing.B) {
				r, s, batch := memoryPair(b)
				t := newTemplate([6]byte{2, 1}, [6]byte{2, 2}, addrsA[family], hopTo(addrsB[family]).Path.Dst, 1500, &testSources)
				b.ReportAllocs()
				for i := 0; i < b.N; i += packet.BatchSize {
					deliver(r, packet.BatchSize, size)
					if err := r.receive(batch); err != nil {
						b.Fatal(err)
					}
					packets := batch.Packets()
					for k := range packets {
						if frame := s.stage(&packets[k], t.length); frame != nil {
							t.write(frame, uint32(k))
						}
					}
					s.tx.submit()
					complete(s)
				}
			})
		}
	}
}

// BenchmarkUnwrap is the outer headers' check.
func BenchmarkUnwrap(b *testing.B) {
	for _, family := range []int{0, 1} {
		for _, verify := range []bool{false, true} {
			for _, size := range []int{64, 1360} {
				b.Run([]string{"v4", "v6"}[family]+map[bool]string{true: "/verified/", false: "/trusted/"}[verify]+strconv.Itoa(size), func(b *testing.B) {
					t := newTemplate([6]byte{2, 1}, [6]byte{2, 2}, addrsA[family], hopTo(addrsB[family]).Path.Dst, 1500, &testSources)
					batch := packet.NewBatch(1, 1500)
					p := &batch.Slots()[0]
					space := p.Reset()
					frame := space[:t.length+size]
					t.write(frame, 1)
					b.ReportAllocs()
					for b.Loop() {
						p.Reset()
						p.Resize(len(frame))
						if drop := unwrap(p, verify); drop != packet.Alive {
							b.Fatal(drop)
						}
					}
				})
			}
		}
	}
}

// BenchmarkSend is Send with the kernel's part, up to where the far end drops the frame. ns/op is per packet.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{64, 1360} {
		for _, n := range []int{1, 8, 64, packet.BatchSize} {
			b.Run(strconv.Itoa(size)+"/batch"+strconv.Itoa(n), func(b *testing.B) {
				u := newUnderlay(b)
				out := openIn(b, u.a, OpenOutside, testConfig())
				q := out.Queues()[0]
				hop := hopTo(netip.MustParseAddr("192.0.2.77"))
				u.a.MustRun(b, "ip", "neigh", "add", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev", "eth0", "nud", "permanent")
				resolve(b, out, hop)
				batch := packettest.NewBatch(q, packet.BatchSize, 0)
				data := make([]byte, size)
				dropped := 0
				b.ResetTimer()
				for i := 0; i < b.N; i += n {
					loadBatch(batch, n, data, hop)
					if err := q.Send(batch); err != nil {
						b.Fatal(err)
					}
					for k := range batch.Packets() {
						if batch.Packets()[k].Drop != packet.Alive {
							dropped++
						}
					}
				}
				b.ReportMetric(float64(dropped)/float64(b.N), "dropped/op")
			})
		}
	}
}

// BenchmarkLane carries packets all the way through both ports on one thread, with everything the kernel does around
// them: from the interface's transmit to the far device, and from the far socket to the interface's receive. cpu-ns/op
// is the thread's processor time per packet, which other load on the machine disturbs less than ns/op.
func BenchmarkLane(b *testing.B) {
	for _, dir := range []string{"out", "in"} {
		for name, attach := range map[string]Attach{"native": Native, "generic": Generic} {
			for _, size := range []int{64, 1360} {
				b.Run(dir+"/"+name+"/"+strconv.Itoa(size), func(b *testing.B) {
					u := newUnderlay(b)
					c := testConfig()
					c.Attach = attach
					in, out := openBoth(b, u, c)
					hop := hopTo(netip.MustParseAddr("192.0.2.77"))
					u.a.MustRun(b, "ip", "neigh", "add", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev", "eth0", "nud", "permanent")
					resolve(b, out, hop)
					inner := packettest.UDP(podA4, podB4, size-28, 1)
					host, far := sniff(b, u.a, "weft0", true), datagrams(b, u.b, addrsB[0], testPort)
					from, to := in.Queues()[0], out.Queues()[0]
					feed := func() error { return host.write(inner) }
					if dir == "in" {
						from, to = to, from
						feed = func() error { _, err := far.WriteToUDPAddrPort(inner, hopTo(addrsA[0]).Path.Dst); return err }
					}
					batch := packettest.NewBatch(from, 64, 0)
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					b.ResetTimer()
					start, carrying := threadTime(), int64(0)
					for i := 0; i < b.N; {
						for range 64 {
							if err := feed(); err != nil {
								b.Fatal(err)
							}
						}
						fed := threadTime()
						for got := 0; got < 64; got += batch.Len() {
							if err := from.Recv(batch); err != nil {
								b.Fatal(err)
							}
							packets := batch.Packets()
							for k := range packets {
								packets[k].Hop = hop
							}
							if err := to.Send(batch); err != nil {
								b.Fatal(err)
							}
							i += batch.Len()
						}
						carrying += threadTime() - fed
					}
					b.ReportMetric(float64(threadTime()-start)/float64(b.N), "cpu-ns/op")
					b.ReportMetric(float64(carrying)/float64(b.N), "lane-cpu-ns/op")
				})
			}
		}
	}
}

// threadTime is the thread's processor time so far, user and system, in nanoseconds.
func threadTime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return ts.Nano()
}
