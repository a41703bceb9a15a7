package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/nettest"
)

// TestQueues: with more queue pairs than this machine has cores, flows spread over lanes of both directions, each flow keeps
// its order, nothing is lost, and every lane adds up.
func TestQueues(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		if kernelForwards(mode) {
			return // no lanes
		}
		c := prepare(t, mode, family, nettest.ClusterOptions{})
		c.extra = fmt.Sprintf("queues: %d", queuePairs)
		c.launch()
		a, b := c.Nodes[0], c.Nodes[1]
		for i := range b.PodAddrs {
			flows(t, a.Pod, b.Pod, b.PodAddrs[i])
			flows(t, b.Pod, a.Pod, a.PodAddrs[i])
		}
		var transfers sync.WaitGroup
		for i := range 6 {
			transfers.Go(func() {
				if err := bulk(a.Pod, b.Pod, b.PodAddrs[i%2], 2<<20); err != nil {
					t.Errorf("TCP transfer %d: %v", i, err)
				}
			})
		}
		transfers.Wait()
		for _, n := range c.Nodes {
			used := map[string]int{}
			for _, l := range c.lanes(n) {
				if l.Received+l.Copied != l.Sent+l.dead() {
					t.Errorf("%s does not add up: %+v", n.Name, l)
				}
				direction, _, _ := strings.Cut(l.Name, "/")
				if l.Received > 0 {
					used[direction]++
				}
			}
			// AF_XDP has as many lanes as the underlay device has receive queues: one here.
			if least := 2; !pastKernel(mode) && (used["out"] < least || used["in"] < least) {
				t.Errorf("%s: lanes that carried packets: %v, want %d of each direction at least", n.Name, used, least)
			}
		}
		// The path reopens with all its queues.
		a.NS.MustRun(t, "ip", "link", "del", "weft0")
		c.allReach()
	})
}

const queuePairs = 3 // machines that run this have 2 cores or so

// flows sends many UDP flows at once, each packet numbered, and expects every packet in its flow's order.
func flows(t *testing.T, from, to *nettest.NS, addr netip.Addr) {
	t.Helper()
	const count, each, burst = 48, 40, 4 // flows, packets in each, packets of each under way at a time
	var l *net.UDPConn
	var err error
	to.Do(func() { l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetReadBuffer(8 << 20)
	got := make(chan error, 1)
	round := make(chan struct{}, each)
	go func() {
		defer close(round)
		next := map[uint32]uint32{}
		buf := make([]byte, 100)
		for n := 1; n <= count*each; n++ {
			l.SetReadDeadline(time.Now().Add(patience))
			if _, err := l.Read(buf); err != nil {
				got <- fmt.Errorf("%d of %d packets: %w", n-1, count*each, err)
				return
			}
			flow, seq := binary.BigEndian.Uint32(buf), binary.BigEndian.Uint32(buf[4:])
			if next[flow] != seq {
				got <- fmt.Errorf("flow %d: packet %d where %d was due", flow, seq, next[flow])
				return
			}
			if next[flow]++; n%(count*burst) == 0 {
				round <- struct{}{}
			}
		}
		got <- nil
	}()
	if err := <-from.Go(func() error {
		var conns []*net.UDPConn
		for range count {
			conn, err := net.DialUDP("udp", nil, l.LocalAddr().(*net.UDPAddr))
			if err != nil {
				return err
			}
			defer conn.Close()
			conns = append(conns, conn)
		}
		for seq := range each {
			for flow, conn := range conns {
				p := make([]byte, 36)
				binary.BigEndian.PutUint32(p, uint32(flow))
				binary.BigEndian.PutUint32(p[4:], uint32(seq))
				if _, err := conn.Write(p); err != nil {
					return err
				}
			}
			if (seq+1)%burst == 0 {
				<-round // all of it has arrived, or the receiver has given up
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("to %v: %v", addr, err)
	}
}
