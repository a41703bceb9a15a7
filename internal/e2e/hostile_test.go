package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/api"
	"weft/catalog"
	"weft/internal/nettest"
)

// hostileCount is how many datagrams each daemon gets; WEFT_TEST_HOSTILE is another number.
const hostileCount = 20_000

// TestHostileDatagrams throws random and mutated datagrams at a running daemon, from a peer's address and from a stranger's, plain and
// sealed. It goes on, and each datagram is in its books: delivered, dropped by a lane or rejected as a handshake under a name, or
// dropped by the kernel. None of them is kept: with millions of datagrams (scripts/test-long) that would show in the daemon's memory.
func TestHostileDatagrams(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	count := number(t, "WEFT_TEST_HOSTILE", hostileCount)
	for _, m := range catalog.Modes {
		for _, seal := range []bool{false, true} {
			name, family := m.Name+"/plain", 4
			if seal {
				name, family = m.Name+"/sealed", 6
			}
			if kernelForwards(m.Name) {
				continue // the kernel is what receives
			}
			t.Run(name, func(t *testing.T) {
				if count <= hostileCount && !raceEnabled {
					t.Parallel() // else each in turn, at its full rate
				}
				hostile(t, m, seal, family, count)
			})
		}
	}
}

func hostile(t *testing.T, m catalog.Mode, seal bool, family, count int) {
	c := prepare(t, m.Name, family, nettest.ClusterOptions{Bridge: true})
	a, b := c.Nodes[0], c.Nodes[1]
	port := m.Port
	if seal {
		c.ownKeys("auto")
		port = 8473
	}
	c.launch()

	// What a real peer sends is what the mutants descend from.
	recorded := capture(t, c.Fabric, "port1", 2000)
	for _, to := range b.PodAddrs {
		a.Pod.MustRun(t, "ping", "-n", "-q", "-c", "40", "-i", "0.002", "-s", "100", to.String())
	}
	if got := flood(t, a.Pod, b.Pod, b.PodAddrs[0], 64); got != 64 {
		t.Errorf("%d of 64 packets arrived", got)
	}
	if err := bulk(a.Pod, b.Pod, b.PodAddrs[1], 1<<20); err != nil {
		t.Error(err)
	}
	breed := breeder{rand: rand.New(rand.NewPCG(uint64(port), uint64(count)))}
	for _, f := range recorded() {
		payload := datagramTo(f, c.endpoint(b), port)
		if seal && payload != nil && payload[0] != 4 {
			continue // a handshake may be answered, and then it is in no book
		}
		if payload != nil && len(breed.parents) < 200 {
			breed.parents = append(breed.parents, payload)
		}
	}
	if len(breed.parents) < 50 {
		t.Fatalf("%d datagrams of a peer were recorded: too few to mutate", len(breed.parents))
	}

	// From here on the peer's address is the attacker's.
	c.stop(a, syscall.SIGKILL)
	stranger := netip.MustParseAddr("192.0.2.66")
	if family == 6 {
		stranger = netip.MustParseAddr("2001:db8::66")
	}
	if err := a.NS.AddAddrs(a.Iface, netip.PrefixFrom(stranger, map[int]int{4: 24, 6: 64}[family])); err != nil {
		t.Fatal(err)
	}
	var senders []int
	for _, from := range []netip.Addr{c.endpoint(a), c.endpoint(a), c.endpoint(a), stranger} {
		senders = append(senders, senderFrom(t, a.NS, from))
	}
	var dst unix.Sockaddr = &unix.SockaddrInet6{Port: int(port), Addr: c.endpoint(b).As16()}
	if family == 4 {
		dst = &unix.SockaddrInet4{Port: int(port), Addr: c.endpoint(b).As4()}
	}
	books := newBooks(t, c, b)
	before := books.settled()
	had := memory(t, c.daemons[b.Name].PID()).anon

	// Nine of ten wait for the daemon, so that it sees them all; the last tenth floods it.
	const ahead = 1000
	sent, began := 0, time.Now()
	for i := range count {
		if i%ahead == 0 && i < count-count/10 {
			c.eventually("the daemon keeps up", func() error {
				if done := books.read().since(before).total(); sent-int(done) > ahead {
					return fmt.Errorf("%d of %d are accounted for", done, sent)
				}
				return nil
			})
		}
		datagram := breed.next()
		if flooding := i >= count-count/10; flooding && len(datagram) > 1400 {
			datagram = datagram[:1400] // whose pieces are no longer one datagram if one is lost
		}
		switch err := unix.Sendto(senders[breed.rand.IntN(len(senders))], datagram, 0, dst); err {
		case nil:
			sent++
		case unix.ENOBUFS, unix.EAGAIN: // never left
		default:
			t.Fatalf("send: %v", err)
		}
	}
	took := time.Since(began)

	var book account
	c.eventually("every datagram is accounted for", func() error {
		book = books.read().since(before)
		if book.total() != uint64(sent) {
			return fmt.Errorf("%d sent, %d accounted for: %v", sent, book.total(), book)
		}
		return nil
	})
	t.Logf("%d datagrams in %v: %v", sent, took.Round(time.Millisecond), book)
	if sent < count*9/10 {
		t.Errorf("only %d of %d datagrams left", sent, count)
	}
	// The lanes have seen most of it, and it had many faults.
	want := []string{"too-short", "wrong-source", "unknown-peer", "bad-header"}
	switch {
	case seal:
		want = []string{"auth-failed", "replayed", "no-session"}
	case book.delivered == 0:
		t.Error("not even what a peer had sent was delivered")
	}
	for _, reason := range want {
		if book.dropped[reason] == 0 {
			t.Errorf("nothing was dropped as %s: %v", reason, book)
		}
	}
	if seal && book.rejected == 0 {
		t.Error("no handshake message was rejected")
	}
	grown := memory(t, c.daemons[b.Name].PID()).anon - had
	t.Logf("the daemon had %.1f MB and has %.1f MB more", had/1e6, grown/1e6)
	if count >= 1e6 && grown > 16*float64(count) { // less is the collector's leeway
		t.Errorf("%.0f bytes are kept of each datagram", grown/float64(count))
	}
	for _, l := range c.lanes(b) {
		if l.Received+l.Copied != l.Sent+l.dead() {
			t.Errorf("%s does not add up: %+v", l.Name, l)
		}
	}

	// It is the same process, and it serves.
	select {
	case <-c.daemons[b.Name].Done():
		t.Fatalf("the daemon ended")
	default:
	}
	c.start(a)
	c.ready(a)
	c.allReach()
}

// number reads a count from the environment.
func number(t *testing.T, key string, normal int) int {
	text := os.Getenv(key)
	if text == "" {
		return normal
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number of 1 at least", key, text)
	}
	return n
}

// datagramTo returns the UDP payload of a frame to an endpoint; nil where it is none, or was cut off or joined.
func datagramTo(frame []byte, to netip.Addr, port uint16) []byte {
	if len(frame) < 62 {
		return nil
	}
	at, proto := 14+20, frame[23]
	if to.Is6() {
		at, proto = 14+40, frame[20]
	}
	addrs := addrsOf(frame)
	if len(addrs) != 2 || addrs[1] != to || proto != unix.IPPROTO_UDP || binary.BigEndian.Uint16(frame[at+2:]) != port {
		return nil
	}
	end := at + int(binary.BigEndian.Uint16(frame[at+4:]))
	if end > len(frame) || end > 14+1500 || end <= at+8 {
		return nil
	}
	return bytes.Clone(frame[at+8 : end])
}

// senderFrom opens a UDP socket of an address of ns.
func senderFrom(t *testing.T, ns *nettest.NS, from netip.Addr) (fd int) {
	t.Helper()
	family, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: from.As16()})
	if from.Is4() {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Addr: from.As4()}
	}
	var err error
	ns.Do(func() { fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) })
	if err == nil {
		t.Cleanup(func() { unix.Close(fd) })
		err = unix.Bind(fd, at)
	}
	if err != nil {
		t.Fatalf("a socket at %v: %v", from, err)
	}
	return fd
}

// breeder makes datagrams that a daemon should not be harmed by.
type breeder struct {
	rand    *rand.Rand
	parents [][]byte // what a peer has sent
	buf     [1 << 15]byte
}

// next returns one; it is valid until the next call.
func (g *breeder) next() []byte {
	switch g.rand.IntN(16) {
	case 0:
		return g.noise(g.rand.IntN(128))
	case 1:
		return g.noise(g.rand.IntN(1472))
	case 2: // more than the underlay carries in one piece
		if g.rand.IntN(32) == 0 {
			return g.noise(1473 + g.rand.IntN(len(g.buf)-1473))
		}
		return nil
	case 3: // VXLAN's header, and noise behind it
		b := g.noise(8 + g.rand.IntN(200))
		copy(b, []byte{8, 0, 0, 0, 0, 0, 1, 0})
		return b
	case 4: // a handshake message's first bytes and length (docs/wire.md), and noise behind them
		shapes := [][2]int{{1, 152}, {2, 116}, {3, 56}, {5, 32}, {1, 151}, {2, 200}, {4, 32}, {4, 33}, {6, 64}}
		s := shapes[g.rand.IntN(len(shapes))]
		b := g.noise(s[1])
		copy(b, []byte{byte(s[0]), 1, 0, 0})
		return b
	case 5: // as it was
		return g.parents[g.rand.IntN(len(g.parents))]
	}
	parent := g.parents[g.rand.IntN(len(g.parents))]
	b := g.buf[:copy(g.buf[:], parent)]
	for range 1 + g.rand.IntN(4) {
		b = g.mutate(b)
	}
	return b
}

func (g *breeder) noise(n int) []byte {
	b := g.buf[:n]
	for i := 0; i < n; i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], g.rand.Uint64())
		copy(b[i:], word[:])
	}
	return b
}

// mutate changes b, most often among its headers.
func (g *breeder) mutate(b []byte) []byte {
	if len(b) == 0 {
		return g.noise(1 + g.rand.IntN(16))
	}
	at := g.rand.IntN(len(b))
	if g.rand.IntN(4) > 0 {
		at = g.rand.IntN(min(len(b), 100))
	}
	switch g.rand.IntN(7) {
	case 0:
		b[at] ^= 1 << g.rand.IntN(8)
	case 1:
		b[at] = byte(g.rand.Uint32())
	case 2: // an extreme value
		b[at] = []byte{0, 1, 0x7f, 0x80, 0xff}[g.rand.IntN(5)]
	case 3: // 16 bits: a length, a checksum, a port
		if at+2 <= len(b) {
			binary.BigEndian.PutUint16(b[at:], uint16(g.rand.Uint32()>>g.rand.IntN(16)))
		}
	case 4:
		b = b[:at]
	case 5: // longer
		n := len(b)
		b = g.buf[:min(n+1+g.rand.IntN(64), len(g.buf))]
		for i := n; i < len(b); i++ {
			b[i] = byte(g.rand.Uint32())
		}
	case 6: // a piece of another one
		other := g.parents[g.rand.IntN(len(g.parents))]
		copy(b[at:], other[min(at, len(other)):])
	}
	return b
}

// books reads where the datagrams that arrive at a node end.
type books struct {
	t      *testing.T
	c      *cluster
	at     *nettest.ClusterNode
	daemon *api.Client
}

// account is where datagrams have ended.
type account struct {
	delivered uint64            // handed to the inside
	dropped   map[string]uint64 // by the lanes
	rejected  uint64            // as handshake messages
	kernel    map[string]uint64
}

func newBooks(t *testing.T, c *cluster, at *nettest.ClusterNode) *books {
	k := &books{t, c, at, api.NewClient(c.path(at, "sock"))}
	t.Cleanup(k.daemon.Close)
	return k
}

func (k *books) read() account {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	book := account{dropped: map[string]uint64{}, kernel: map[string]uint64{}}
	lanes, err := k.daemon.Lanes(ctx)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, l := range lanes {
		if !strings.HasPrefix(l.Name, "in/") {
			continue
		}
		book.delivered += l.Sent
		for _, s := range l.Stages {
			for reason, n := range s.Drops {
				book.dropped[reason] += n
			}
		}
	}
	status, err := k.daemon.Status(ctx)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, n := range status.Rejected {
		book.rejected += n
	}
	if status.Cipher != "none" {
		peers, err := k.daemon.Peers(ctx)
		if err != nil {
			k.t.Fatal(err)
		}
		for _, p := range peers {
			if p.Session == nil {
				continue
			}
			for reason, n := range p.Session.Rejected {
				if reason != "auth-failed" && reason != "replayed" { // those are a lane's drops too
					book.rejected += n
				}
			}
		}
	}
	k.kernel(&book, status.KernelDrops)
	return book
}

// kernel adds the drops of the kernel: sockets, devices on the way, AF_XDP rings. Errors of the IP layer are those of what was
// delivered: the outer headers are a kernel's own and right.
func (k *books) kernel(book *account, rings map[string]uint64) {
	k.t.Helper()
	var text []byte
	k.at.NS.Do(func() {
		for _, file := range []string{"snmp", "snmp6"} {
			part, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				k.t.Fatal(err)
			}
			text = append(text, part...)
		}
	})
	counters := snmp(string(text))
	for name, is := range map[string]string{
		"Udp:RcvbufErrors": "socket-overflow", "Udp:MemErrors": "socket-overflow",
		"Udp6RcvbufErrors": "socket-overflow", "Udp6MemErrors": "socket-overflow",
	} {
		if n := counters[name]; n > 0 {
			book.kernel[is] += n
		}
	}
	// Two veth pairs with a bridge between them. A full input queue is counted at both ends of a pair, but for an XDP
	// device: what its ring cannot take is the sender's, what fails behind that its own, and the AF_XDP socket's too.
	first := max(k.device(k.c.Nodes[0].NS, "eth0").tx, k.device(k.c.Fabric, "port1").rx)
	out, in := k.device(k.c.Fabric, "port2").tx, k.device(k.at.NS, "eth0").rx
	second := max(out, in)
	if pastKernel(k.c.mode) {
		second = out + max(in, rings["xdp-rx-dropped"]+rings["xdp-rx-ring-full"])
	}
	if first+second > 0 {
		book.kernel["device"] = first + second
	}
}

type deviceDrops struct{ tx, rx uint64 }

func (k *books) device(ns *nettest.NS, name string) deviceDrops {
	k.t.Helper()
	l, err := ns.Netlink().LinkByName(name)
	if err != nil {
		k.t.Fatal(err)
	}
	s := l.Attrs().Statistics
	return deviceDrops{s.TxDropped, s.RxDropped}
}

// snmp reads /proc/net/snmp ("Udp:NoPorts") and snmp6 ("Udp6NoPorts").
func snmp(text string) map[string]uint64 {
	counters := map[string]uint64{}
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && !strings.HasSuffix(f[0], ":"):
			counters[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		case names != nil && len(f) == len(names) && f[0] == names[0]:
			for i := range f {
				counters[f[0]+names[i]], _ = strconv.ParseUint(f[i], 10, 64) // some are -1: settings
			}
			names = nil
		default:
			names = f
		}
	}
	return counters
}

// settled waits until nothing arrives any more and returns the account.
func (k *books) settled() (book account) {
	k.t.Helper()
	last, still := k.read(), 0
	k.c.eventually("nothing arrives", func() error {
		book = k.read()
		if still++; book.since(last).total() > 0 {
			last, still = book, 0
		}
		if still < 10 {
			return fmt.Errorf("still moving: %v", book)
		}
		return nil
	})
	return book
}

func (a account) since(before account) account {
	return account{a.delivered - before.delivered, minus(a.dropped, before.dropped), a.rejected - before.rejected, minus(a.kernel, before.kernel)}
}

func minus(now, before map[string]uint64) map[string]uint64 {
	d := map[string]uint64{}
	for name, n := range now {
		if n != before[name] {
			d[name] = n - before[name]
		}
	}
	return d
}

func (a account) total() uint64 {
	sum := a.delivered + a.rejected
	for _, m := range []map[string]uint64{a.dropped, a.kernel} {
		for _, n := range m {
			sum += n
		}
	}
	return sum
}

func (a account) String() string {
	return fmt.Sprintf("%d delivered, dropped %v, %d handshake messages rejected, the kernel dropped %v", a.delivered, a.dropped, a.rejected, a.kernel)
}
