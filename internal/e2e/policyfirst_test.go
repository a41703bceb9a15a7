package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/api"
	"weft/internal/nettest"
)

// TestFirstMillisecond: of a pod whose processes send from before it has an address, nothing ever comes through that policies deny, whether the
// source knows the pod or not; and it does where they allow it.
func TestFirstMillisecond(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	starts := 20
	if os.Getenv("WEFT_TEST_LONG") != "" {
		starts = 1000
	}
	c := newPoliced(t, "vxlan")
	c.pods["first"] = &policedPod{text: "namespace: y"}
	c.write(np("none", "y", "{podSelector: {}, policyTypes: [Egress]}"))
	c.inForce()
	to := c.pods["b0"]
	var listener net.PacketConn
	var err error
	to.ns.Do(func() { listener, err = net.ListenPacket("udp", ":99") })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var mu sync.Mutex
	came := map[uint32]int{}
	go func() {
		b := make([]byte, 64)
		for {
			n, _, err := listener.ReadFrom(b)
			if err != nil {
				return
			}
			if n == 4 {
				mu.Lock()
				came[binary.BigEndian.Uint32(b)]++
				mu.Unlock()
			}
		}
	}()
	sent := int64(0)
	for i := range starts {
		sent += c.startSending(uint32(i), []string{"first", "unknown"}[i%2], to.addrs)
	}
	c.write(np("all", "y", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}"))
	c.inForce()
	control := uint32(starts)
	c.startSending(control, "first", to.addrs)
	c.eventually("what is allowed comes", func() error {
		mu.Lock()
		defer mu.Unlock()
		if came[control] == 0 {
			return errors.New("nothing")
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	delete(came, control)
	for i, n := range came {
		t.Errorf("start %d: %d packets came through", i, n)
	}
	t.Logf("%d starts, %d packets sent from before each pod had an address until after its ADD: %d starts of which some came through", starts, sent, len(came))
}

// startSending attaches a pod to node-a that sends a number all the while, and takes it away again. It returns how many packets it sent.
func (c *policed) startSending(number uint32, name string, to []netip.Addr) int64 {
	t := c.t
	t.Helper()
	ns, err := nettest.Create("weft-test")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var sent [2]atomic.Int64 // by family
	stop := make(chan struct{})
	var senders sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); senders.Wait() })
	defer end()
	for family := range to {
		var conn net.PacketConn
		ns.Do(func() { conn, err = net.ListenPacket([]string{"udp4", "udp6"}[family], ":0") })
		if err != nil {
			t.Fatal(err)
		}
		senders.Go(func() {
			defer conn.Close()
			pace := time.NewTicker(50 * time.Microsecond)
			defer pace.Stop()
			at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to[family], 99))
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
					if _, err := conn.WriteTo(binary.BigEndian.AppendUint32(nil, number), at); err == nil {
						sent[family].Add(1)
					}
				}
			}
		})
	}
	client := c.clients[c.Nodes[0].Name]
	id := fmt.Sprint("first-", number)
	c.eventually("a pod is attached", func() error {
		_, err := client.Attach(t.Context(), api.AttachRequest{ContainerID: id, IfName: "eth0", Netns: ns.Path(), Network: "weft", PodNamespace: "y", PodName: name})
		return err
	})
	for family := range to {
		from := sent[family].Load()
		c.eventually("it sends", func() error {
			if n := sent[family].Load(); n < from+20 {
				return fmt.Errorf("%d packets to %v since it was attached", n-from, to[family])
			}
			return nil
		})
	}
	end()
	if err := client.Detach(t.Context(), api.DetachRequest{ContainerID: id, IfName: "eth0", Network: "weft"}); err != nil {
		t.Fatal(err)
	}
	return sent[0].Load() + sent[1].Load()
}
