package underlay

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/packet"
)

// messages loads n packets as the messages of s, without addresses: for sockets that are connected.
func messages(s *sender, n int) []packet.Packet {
	b := packet.NewBatch(n, 100)
	for i := range n {
		put(b, i, []byte("0123456789"), nil, 0)
		setIov(&s.iovs[i], b.Packets()[i].Bytes())
		s.order[i], s.runs[i] = uint8(i), run{first: uint8(i), count: 1}
		s.msgs[i].Iov = &s.iovs[i]
		s.msgs[i].SetIovlen(1)
	}
	return b.Packets()
}

// A UNIX datagram socket whose reader does not read is full after some messages: the same EAGAIN
// that a UDP socket gives whose packets wait in a device queue.
func TestAFullSocketDropsTheRest(t *testing.T) {
	for name, batch := range map[string]bool{"Batch": true, "Single": false} {
		t.Run(name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[0])
			defer unix.Close(fds[1])
			s := newSender(Config{Batch: batch})
			sent, full := 0, 0
			for range 1000 {
				packets := messages(s, packet.BatchSize)
				if err := s.through(fds[0], len(packets), packets); err != nil {
					t.Fatal(err)
				}
				for i := range packets {
					switch p := &packets[i]; {
					case p.Drop == packet.QueueFull:
						full++
					case p.Drop != packet.Alive:
						t.Fatalf("dropped as %v", p.Drop)
					case full > 0:
						t.Fatal("a packet was sent behind one that found the socket full")
					default:
						sent++
					}
				}
				if full > 0 {
					break
				}
			}
			if full == 0 {
				t.Fatal("the socket never was full")
			}
			got := 0
			for buf := make([]byte, 100); ; got++ {
				if _, err := unix.Read(fds[1], buf); err != nil {
					break
				}
			}
			if got != sent {
				t.Errorf("%d packets arrived, %d are reported as sent", got, sent)
			}
		})
	}
}

func TestADeadSocketIsAnError(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	s := newSender(Config{Batch: true})
	for fd, want := range map[int]error{-1: unix.EBADF, pipe[1]: unix.ENOTSOCK} {
		packets := messages(s, 3)
		if err := s.through(fd, len(packets), packets); !errors.Is(err, want) {
			t.Errorf("descriptor %d: %v, want %v", fd, err, want)
		}
		r := newReceiver(Config{Batch: true})
		if _, err := r.drain(&inlet{fd: fd}, packets, 0, 1); !errors.Is(err, want) {
			t.Errorf("descriptor %d: %v, want %v", fd, err, want)
		}
	}
}

func TestReasons(t *testing.T) {
	for errno, want := range map[unix.Errno]packet.Drop{
		unix.EMSGSIZE: packet.TooBig, unix.ENOBUFS: packet.QueueFull, unix.ENOMEM: packet.QueueFull,
		unix.EPERM: packet.Refused, unix.ENETUNREACH: packet.Refused, unix.EHOSTUNREACH: packet.Refused,
		unix.EINVAL: packet.Refused, unix.ECONNREFUSED: packet.Refused,
	} {
		if got := reason(errno); got != want {
			t.Errorf("%v: %v, want %v", errno, got, want)
		}
	}
}

// A run above the path's MTU that a kernel refuses as EINVAL: its shorter end goes, and that is no reason to join nothing any more.
func TestAShortEndIsNoRefusalToJoin(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10); err != nil { // it takes no message above that
		t.Fatal(err)
	}
	for _, c := range []struct {
		size, last int
		joins      bool
	}{{17000, 100, true}, {1000, 100, false}} {
		s := newSender(Config{Batch: true})
		s.gso = true
		b, hop := packet.NewBatch(3, 20000), hopTo(netip.AddrPort{})
		for i, n := range []int{c.size, c.size, c.last} {
			put(b, i, make([]byte, n), hop, 0)
			s.via[i] = 0
		}
		if n := s.gather(b.Packets(), 0); n != 1 {
			t.Fatalf("%d messages, want a run", n)
		}
		s.msgs[0].Name, s.msgs[0].Namelen = nil, 0
		if err := s.apart(fds[0], 0, b.Packets(), unix.EINVAL); err != nil {
			t.Fatal(err)
		}
		if s.gso != c.joins || b.Packets()[2].Drop != packet.Alive {
			t.Errorf("packets of %d bytes: joined from now on: %v, want %v; the last one: %v", c.size, s.gso, c.joins, b.Packets()[2].Drop)
		}
	}
}
