package hostnet

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// TestSurroundings: what an attempt itself does to the kernel, and what concerns nobody, leaves them as they are; what could make an
// attempt succeed does not.
func TestSurroundings(t *testing.T) {
	b := newBench(t)
	was := b.host.Surroundings("test")
	for _, c := range []struct {
		cmd   string
		other bool // than before the command
	}{
		{"ip link add pod1 type veth peer name pod2", false},
		{"ip link set pod1 up", false},
		{"ip link add weft0123456789a type bridge", false}, // a pod's
		{"ip link add weft0-x type veth peer name weft-y", true},
		{"ip link set weft0-x up", false},
		{"ip link del weft0-x", true}, // weft-y with it
		{"ip route add 10.9.0.0/16 dev eth0", false},
		{"ip addr add 203.0.113.1/24 dev pod1", true},
		{"ip link set eth0 mtu 1400", true},
		{"ip link set eth0 down", true},
		{"ip link set eth0 up", true},
		{"ip addr del 192.0.2.1/24 dev eth0", true},
		{"ip link add weft0 type bridge", true}, // somebody's
		{"ip link del weft0", true},
		{"ip link del pod1", true},
	} {
		args := strings.Fields(c.cmd)
		b.ns.MustRun(t, args[0], args[1:]...)
		now := b.host.Surroundings("test")
		if (now != was) != c.other || now == 0 {
			t.Errorf("after %q: %x, before %x", c.cmd, now, was)
		}
		was = now
	}
	// A device that comes and goes leaves what was there before, however often.
	for range 3 {
		b.ip("link", "add", "weft0", "type", "veth", "peer", "name", "weft0-x")
		b.ip("link", "del", "weft0")
		if now := b.host.Surroundings("test"); now != was {
			t.Errorf("a device that came and went: %x, before %x", now, was)
		}
	}
}

// TestSurroundingsTellOfTheRest: that something which was not in force is, because a stranger made room for it, is another state of
// things.
func TestSurroundingsTellOfTheRest(t *testing.T) {
	b := newBench(t)
	b.guarded(sample())
	b.ip("route", "add", "10.244.7.0/24", "dev", "eth0", "proto", "static")
	more := sample()
	more.Routes = append(slices.Clone(more.Routes), route("10.244.7.0/24", "10.244.2.0", "10.244.1.1"))
	if err := b.host.Apply("test", more); err == nil || !strings.Contains(err.Error(), "10.244.7.0/24 is this node's own network on eth0, which the node needs") {
		t.Fatalf("Apply = %v", err)
	}
	was := b.host.Surroundings("test")
	if err := b.host.Apply("test", more); err == nil || b.host.Surroundings("test") != was {
		t.Errorf("again: %v, %x, before %x", err, b.host.Surroundings("test"), was)
	}
	b.ip("route", "del", "10.244.7.0/24", "proto", "static")
	nettest.Eventually(t, waitLong, func() error {
		if b.host.Surroundings("test") == was {
			return fmt.Errorf("nothing has changed: %v", b.host.Err("test"))
		}
		return nil
	})
	b.apply(more)
}

// TestOthersRoutesAreNews: routes and rules of somebody else may lead to the peers, so the owners hear of them; the node's own
// addresses and what we make ourselves do not count.
func TestOthersRoutesAreNews(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	listener, err := b.host.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	buf := make([]byte, 1<<16)
	for _, c := range []struct {
		cmd  string
		news bool
	}{
		{"ip route add 10.9.0.0/16 via 192.0.2.2", true},
		{"ip route replace 10.9.0.0/16 via 192.0.2.3 mtu 1400", true},
		{"ip route del 10.9.0.0/16", true},
		{"ip -6 route add 2001:db8:9::/48 dev eth0", true},
		{"ip -6 route del 2001:db8:9::/48 dev eth0", true},
		{"ip route add unreachable 10.9.0.0/16", true},
		{"ip route add 10.8.0.0/16 dev eth0 table 100", true},
		{"ip rule add to 10.8.0.0/16 lookup 100", true},
		{"ip rule del to 10.8.0.0/16", true},
		{"ip route add local 10.7.0.1 dev lo", false},
		{"ip route add 10.245.9.0/24 dev eth0 proto 87", false}, // a stray of ours: that is for a look
		{"ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0", false},
	} {
		b.host.around.Store(false)
		args := strings.Fields(c.cmd)
		b.ns.MustRun(t, args[0], args[1:]...)
		for {
			n, _, err := unix.Recvfrom(listener.GetFd(), buf, unix.MSG_DONTWAIT)
			if err != nil {
				break // all is read: the kernel had told before the command ended
			}
			news, err := syscall.ParseNetlinkMessage(buf[:n])
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range news {
				b.host.surprising(m)
			}
		}
		if got := b.host.around.Load(); got != c.news {
			t.Errorf("%q: news %v, want %v", c.cmd, got, c.news)
		}
	}
}
