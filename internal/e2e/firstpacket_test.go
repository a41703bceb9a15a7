package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"weft/api"
	"weft/catalog"
	"weft/internal/nettest"
)

// TestFirstPacket: pods that may reach nobody send from before they have an interface until they are gone, and nothing of it arrives; nor of
// those that are attached again after the daemon was killed. Those that may do arrive.
func TestFirstPacket(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	starts := 15
	if os.Getenv("WEFT_TEST_LONG") != "" {
		starts = 500 // in each of two ways
	}
	for _, m := range catalog.Modes {
		if os.Getenv("WEFT_TEST_LONG") == "" && !slices.Contains([]string{"vxlan", "tun-gso"}, m.Name) {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := newPoliced(t, m.Name)
			for i := range starts {
				c.pods[fmt.Sprint("shut", i)] = &policedPod{text: "namespace: y, labels: {may: nothing}"}
			}
			c.pods["open"] = &policedPod{text: "namespace: y, labels: {may: all}"}
			c.write(np("nothing", "y", "{podSelector: {matchLabels: {may: nothing}}, policyTypes: [Egress, Ingress]}"))
			c.inForce()
			client := c.clients[c.Nodes[0].Name]
			var targets []netip.AddrPort
			var arrived atomic.Uint64
			for _, n := range c.Nodes { // on the pods' own node, and beyond the overlay
				for _, a := range n.PodAddrs {
					targets = append(targets, netip.AddrPortFrom(a, 99))
				}
				var u net.PacketConn
				var err error
				n.Pod.Do(func() { u, err = net.ListenPacket("udp", ":99") })
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { u.Close() })
				go func() {
					for b := make([]byte, 64); ; {
						if _, _, err := u.ReadFrom(b); err != nil {
							return
						}
						arrived.Add(1)
					}
				}()
			}
			start := func(name, id string) {
				t.Helper()
				ns := nettest.New(t)
				defer ns.Close()
				stop := make(chan struct{})
				done := ns.Go(func() error { return pour(targets, stop) })
				c.eventually("a pod is attached", func() error {
					_, err := client.Attach(t.Context(), api.AttachRequest{ContainerID: id, IfName: "eth0", Netns: ns.Path(), Network: "weft", PodNamespace: "y", PodName: name})
					return err
				})
				if name == "open" {
					c.eventually("what may pass does", func() error {
						if arrived.Load() == 0 {
							return errors.New("nothing arrived")
						}
						return nil
					})
				}
				close(stop)
				if err := <-done; err != nil {
					t.Error(err)
				}
				if err := client.Detach(t.Context(), api.DetachRequest{ContainerID: id, IfName: "eth0", Netns: ns.Path(), Network: "weft"}); err != nil {
					t.Error(err)
				}
			}
			for i := range starts {
				start(fmt.Sprint("shut", i), fmt.Sprint("first", i))
			}
			c.stop(c.Nodes[0], syscall.SIGKILL)
			c.start(c.Nodes[0])
			c.ready(c.Nodes[0])
			for i := range starts {
				start(fmt.Sprint("shut", i), fmt.Sprint("second", i))
			}
			if n := arrived.Load(); n > 0 {
				t.Errorf("%d packets of pods that may reach nobody arrived, in %d starts", n, 2*starts)
			}
			t.Logf("%d starts, %d packets arrived", 2*starts, arrived.Load())
			start("open", "open")
		})
	}
}

// pour sends to every target, as fast as it goes, and once more after stop is closed.
func pour(targets []netip.AddrPort, stop chan struct{}) error {
	socks := map[bool]int{}
	for six, family := range map[bool]int{false: syscall.AF_INET, true: syscall.AF_INET6} {
		fd, err := syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		socks[six] = fd
	}
	for last := false; ; {
		for _, to := range targets {
			var at syscall.Sockaddr
			if a := to.Addr(); a.Is4() {
				at = &syscall.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
			} else {
				at = &syscall.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}
			}
			_ = syscall.Sendto(socks[to.Addr().Is6()], []byte("first"), syscall.MSG_DONTWAIT, at) // before there is an interface there is no route
		}
		if last {
			return nil
		}
		select {
		case <-stop:
			last = true
		default:
		}
	}
}
