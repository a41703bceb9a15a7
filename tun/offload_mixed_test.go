package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
)

// TestOffloadMixed: shapes of traffic at once on one device, both families, every byte verified: round trips of TCP in
// messages up to a full segment, beside bulk, bulk of smaller segments, bursts of datagrams as QUIC sends them, single
// datagrams, and fragments. What TCP carries all arrives; of the datagrams, what arrives is right.
func TestOffloadMixed(t *testing.T) {
	nettest.RequireKernel(t, kernel.UDPSegment)
	for name, way := range map[string]func() between{"untouched": untouched, "finished": finished} {
		t.Run(name, func(t *testing.T) {
			j := joinDevices(t, 1450, OpenOffload, way)
			var trips, others sync.WaitGroup
			var end ending
			for _, addr := range j.addrsB {
				for _, kind := range []struct{ length, segment int }{{5000, 500}, {3000, 0}, {1200, 0}} {
					datagramStream(t, j, &others, &end, addr, kind.length, kind.segment)
				}
				near, far := tcpPair(t, j, addr, 700)
				bulk(t, &others, &end, near, far)
				near, far = tcpPair(t, j, addr, 0)
				bulk(t, &others, &end, far, near)
				near, far = tcpPair(t, j, addr, 0)
				roundTrips(t, &trips, &end, near, far, 800)
			}
			trips.Wait()
			end.Store(true)
			others.Wait()
		})
	}
}

// ending says when the others stop, and when they pause: most round trips are alone, so that what was learnt of super-packets
// is forgotten, again and again.
type ending struct {
	atomic.Bool
	trips atomic.Int64
}

// pause is how long super-packets are not sent for: a moment between two, and while round trips want to be alone.
func (e *ending) pause() {
	for time.Sleep(time.Millisecond); e.trips.Load()%400 > 60 && !e.Load(); {
		time.Sleep(time.Millisecond)
	}
}

// tcpPair is a connection from namespace a to b; mss 0 = the kernel's.
func tcpPair(t *testing.T, j *joined, addr netip.Addr, mss int) (near, far net.Conn) {
	t.Helper()
	var l net.Listener
	var err error
	j.b.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := net.Dialer{Timeout: patience}
	if mss > 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, mss) })
		}
	}
	j.a.Do(func() { near, err = d.Dial("tcp", l.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{near, far} {
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(3 * patience)); err != nil {
			t.Fatal(err)
		}
	}
	return near, far
}

// roundTrips sends n messages, one at a time, and compares what comes back.
func roundTrips(t *testing.T, wg *sync.WaitGroup, end *ending, near, far net.Conn, n int) {
	wg.Go(func() {
		if _, err := io.Copy(far, far); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		defer near.Close()
		message, got := make([]byte, 1392), make([]byte, 1392)
		for i := range n {
			end.trips.Add(1)
			size := 1370 // one segment, in both families
			if i%4 == 3 {
				size = 1 + i*7919%1370
			}
			pattern(message, uint64(i)<<20)
			_, err := near.Write(message[:size])
			if err == nil {
				_, err = io.ReadFull(near, got[:size])
			}
			if err != nil {
				t.Errorf("message %d: %v", i, err)
				return
			}
			if !bytes.Equal(got[:size], message[:size]) {
				t.Errorf("message %d: other bytes came back than were sent", i)
				return
			}
		}
	})
}

// bulk sends blocks until the end, and compares what arrives.
func bulk(t *testing.T, wg *sync.WaitGroup, end *ending, from, to net.Conn) {
	option(t, from.(*net.TCPConn), unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<16) // or it goes on for long into a pause
	wg.Go(func() {
		defer from.Close()
		block := make([]byte, 1<<14)
		for at := uint64(0); !end.Load(); at += uint64(len(block)) {
			pattern(block, at)
			if _, err := from.Write(block); err != nil {
				t.Errorf("bulk: %v", err)
				return
			}
			end.pause()
		}
	})
	wg.Go(func() {
		got, want := make([]byte, 1<<14), make([]byte, 1<<14)
		for at := uint64(0); ; at += uint64(len(got)) {
			if _, err := io.ReadFull(to, got); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("bulk, at %d: %v", at, err)
				}
				return
			}
			if pattern(want, at); !bytes.Equal(got, want) {
				t.Errorf("bulk: wrong bytes in the 16 KB from %d", at)
				end.Store(true)
			}
		}
	})
}

// datagramStream sends so many bytes at a time until the end, in datagrams of segment bytes by UDP_SEGMENT if that is not 0,
// now and then. Each burst says in its first bytes which it is: a receiver knows by that what is in all of it.
func datagramStream(t *testing.T, j *joined, wg *sync.WaitGroup, end *ending, addr netip.Addr, length, segment int) {
	t.Helper()
	var in, out *net.UDPConn
	var err error
	j.b.Do(func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	j.a.Do(func() { out, err = net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	option(t, in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	each := length
	if segment > 0 {
		each = segment
		option(t, out, unix.SOL_UDP, unix.UDP_SEGMENT, segment)
	}
	wg.Go(func() {
		b := make([]byte, 0, length+each)
		for n := uint64(1); !end.Load(); n++ {
			b = b[:0]
			for len(b) < length {
				b = append(b, datagram(n<<16|uint64(len(b)), each)...)
			}
			if _, err := out.Write(b[:length]); err != nil && !errors.Is(err, unix.ENOBUFS) {
				t.Errorf("send %d bytes: %v", length, err)
				return
			}
			end.pause()
		}
		// The receiver ends by the last one, of which some must arrive.
		last := datagram(0, each)
		for range 20 {
			_, _ = out.Write(last)
			time.Sleep(10 * time.Millisecond)
		}
	})
	wg.Go(func() {
		buf, came := make([]byte, 1<<16), 0
		for ; ; came++ {
			if err := in.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Error(err)
				return
			}
			n, err := in.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) || n < 8 {
				t.Errorf("datagrams of %d bytes: %d came, and then none", each, came)
				return
			}
			name := binary.LittleEndian.Uint64(buf)
			if name == 0 {
				break
			}
			if want := datagram(name, each); !bytes.Equal(buf[:n], want) {
				t.Error(fmt.Errorf("datagram %#x of %d bytes: wrong bytes in %d", name, each, n))
				end.Store(true)
			}
		}
		if came == 0 {
			t.Errorf("no datagram of %d bytes came", each)
		}
	})
}

// datagram is n bytes, of which the first eight say the rest.
func datagram(name uint64, n int) []byte {
	b := make([]byte, (n+7)&^7)
	pattern(b, name)
	binary.LittleEndian.PutUint64(b, name)
	return b[:n]
}
