package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// floodRate is how many handshake messages a second strangers send.
const floodRate = 110_000

// TestHandshakeFlood has strangers send a node more than 100,000 initiations a second, from many addresses, beside traffic at half of
// the load it carries without loss. They know the node's public key, so their MAC is right and the node has to look closer. Nothing of
// theirs is accepted, and each of their datagrams is in the books. With WEFT_TEST_LONG, on a quiet machine, traffic loses at most 0.1 %;
// what of them is kept, which is nothing, encap/sealed tests.
func TestHandshakeFlood(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	length, long := 3*time.Second, os.Getenv("WEFT_TEST_LONG") != ""
	if long {
		length = 30 * time.Second
	}
	for _, mode := range []string{"tun-gso", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			c := prepare(t, mode, 4, nettest.ClusterOptions{Nodes: 3})
			a, b, evil := c.Nodes[0], c.Nodes[1], c.Nodes[2]
			c.ownKeys("auto")
			c.launch()
			load := newLoad(t, a, b)
			rate, payload := load.lossFree(2 * time.Second)
			c.stop(evil, syscall.SIGKILL)
			strangers := newStrangers(t, evil, c.publicKey[b.Name], netip.AddrPortFrom(b.Underlay[0], 8473))
			attack := func(length time.Duration) (sent uint64, perSecond float64, r loaded) {
				stop := make(chan struct{})
				var took time.Duration
				flooding := evil.NS.Go(func() (err error) {
					begin := time.Now()
					sent, err = strangers.flood(floodRate, stop)
					took = time.Since(begin)
					return err
				})
				r, err := load.stream(rate/2, payload, length)
				close(stop)
				if err := errors.Join(err, <-flooding); err != nil {
					t.Fatal(err)
				}
				return sent, float64(sent) / took.Seconds(), r
			}
			attack(time.Second) // buffers are touched
			before := c.refusals(b)
			c.eventually("the books stand still", func() error {
				last := before
				if before = c.refusals(b); before != last {
					return fmt.Errorf("%+v since the last look", before.since(last))
				}
				return nil
			})
			had, accepted := memory(t, c.daemons[b.Name].PID()).anon, c.accepted(b)
			var sent uint64
			for try := 1; ; try++ {
				died := c.losses()
				n, perSecond, r := attack(length)
				sent += n
				lost := r.Generated - r.Delivered
				t.Logf("%.0f initiations a second beside %.0f packets a second, half of what passes without loss: %d of %d packets lost",
					perSecond, rate/2, lost, r.Generated)
				if perSecond < 100_000 {
					t.Logf("less than 100,000: the machine has no more for the strangers")
				}
				if !long || lost <= r.Generated/1000 {
					break
				}
				t.Logf("died: %v, at the ends: %v", minus(c.losses(), died), r.KernelDrops)
				if try == 3 { // the machine has a hiccup now and then, also without strangers
					t.Errorf("traffic loses more than one packet in a thousand in each of three floods")
					break
				}
			}
			var refused refusals
			c.eventually("every initiation is accounted for", func() error {
				refused = c.refusals(b).since(before)
				// A device counts a super-packet as one, and packets of others as well.
				if least := refused.total(); least+(initiations-1)*refused.devices < sent {
					return fmt.Errorf("%d sent, %d in the books: %+v", sent, least, refused)
				}
				return nil
			})
			t.Logf("of %d initiations %d were rejected, %d answered with a cookie, %d dropped at the socket, %d on the way; memory %.1f → %.1f MB",
				sent, refused.rejected, refused.cookies, refused.overflow, refused.devices, had/1e6, memory(t, c.daemons[b.Name].PID()).anon/1e6)
			if books := refused.total() - refused.devices; books > sent {
				t.Errorf("%d initiations were sent, %d are in the books", sent, books)
			}
			// A session that began meanwhile began at the other end, too.
			now := c.accepted(b)
			if now[evil.Name] != accepted[evil.Name] || now[a.Name]-accepted[a.Name] > 1 || now[a.Name] != c.accepted(a)[b.Name] {
				t.Errorf("sessions before the flood: %v, after: %v, %s has had %v", accepted, now, a.Name, c.accepted(a))
			}
		})
	}
}

// accepted is how many sessions a node has had, by peer.
func (c *cluster) accepted(n *nettest.ClusterNode) map[string]uint64 {
	all := map[string]uint64{}
	for _, p := range c.peers(n) {
		all[p.Node] = p.Session.Handshakes
	}
	return all
}

// refusals is what became of initiations that were not accepted.
type refusals struct{ rejected, cookies, overflow, devices uint64 }

func (r refusals) since(o refusals) refusals {
	return refusals{r.rejected - o.rejected, r.cookies - o.cookies, r.overflow - o.overflow, r.devices - o.devices}
}

func (r refusals) total() uint64 { return r.rejected + r.cookies + r.overflow + r.devices }

// refusals reads a node's books, and the devices between it and the last node.
func (c *cluster) refusals(n *nettest.ClusterNode) (r refusals) {
	c.t.Helper()
	var s struct {
		Rejected    map[string]uint64 `json:"rejected"`
		CookiesSent uint64            `json:"cookies_sent"`
		KernelDrops map[string]uint64 `json:"kernel_drops"`
	}
	if err := c.ask(n, &s, "status"); err != nil {
		c.t.Fatal(err)
	}
	r = refusals{total(s.Rejected), s.CookiesSent, s.KernelDrops["handshake-overflow"], 0}
	for _, p := range c.peers(n) {
		r.rejected += total(p.Session.Rejected)
		r.cookies += p.Session.CookiesSent
	}
	last := c.Nodes[len(c.Nodes)-1]
	for _, at := range []struct {
		ns     *nettest.NS
		device string
	}{{last.NS, last.Iface}, {c.Fabric, "port2"}} {
		l, err := at.ns.Netlink().LinkByName(at.device)
		if err != nil {
			c.t.Fatal(err)
		}
		r.devices += l.Attrs().Statistics.TxDropped
	}
	return r
}

// strangers are many addresses that initiations with a right MAC 1 and random bytes inside come from.
type strangers struct {
	to      unix.Sockaddr
	sockets []int
	pool    []byte // messages one behind the other
}

const (
	initiation    = 152 // bytes, docs/wire.md
	initiations   = 64  // in one system call, as one super-packet
	strangerCount = 64
)

// newStrangers makes them on a node's underlay: half of them have their address, half are spoofed.
func newStrangers(t *testing.T, n *nettest.ClusterNode, publicKey string, to netip.AddrPort) *strangers {
	t.Helper()
	public, err := base64.StdEncoding.DecodeString(publicKey)
	if err != nil {
		t.Fatal(err)
	}
	key := blake2s.Sum256(append([]byte("weft mac1"), public...))
	s := &strangers{to: &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}, pool: make([]byte, 256*initiations*initiation)}
	random := rand.NewChaCha8([32]byte{7})
	random.Read(s.pool)
	for msg := s.pool; len(msg) > 0; msg = msg[initiation:] {
		copy(msg, []byte{1, 1, 0, 0})
		clear(msg[136:initiation]) // MAC 2: no cookie
		mac, err := blake2s.New128(key[:])
		if err != nil {
			t.Fatal(err)
		}
		mac.Write(msg[:120])
		copy(msg[120:], mac.Sum(nil))
	}
	for i := range strangerCount {
		at := netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
		if i%2 == 0 {
			if err := n.NS.AddAddrs(n.Iface, netip.PrefixFrom(at, 24)); err != nil {
				t.Fatal(err)
			}
		}
		var fd int
		n.NS.Do(func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, initiation), unix.Bind(fd, &unix.SockaddrInet4{Addr: at.As4()})); err != nil {
			t.Fatalf("a socket at %v: %v", at, err)
		}
		s.sockets = append(s.sockets, fd)
	}
	return s
}

// flood sends at a rate a second until stop, and returns how many initiations the kernel took.
func (s *strangers) flood(rate float64, stop <-chan struct{}) (sent uint64, err error) {
	begin, at := time.Now(), 0
	for i := 0; ; i++ {
		select {
		case <-stop:
			return sent, nil
		default:
		}
		if ahead := float64(sent)/rate - time.Since(begin).Seconds(); ahead > 0 {
			time.Sleep(time.Duration(ahead * 1e9)) // the rate
		}
		burst := s.pool[at : at+initiations*initiation]
		if at += len(burst); at == len(s.pool) {
			at = 0
		}
		switch err := unix.Sendto(s.sockets[i%len(s.sockets)], burst, 0, s.to); err {
		case nil:
			sent += initiations
		case unix.EAGAIN, unix.ENOBUFS: // never left
		default:
			return sent, fmt.Errorf("send initiations: %w", err)
		}
	}
}
