package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// station is a raw socket on a node's weft0: a host behind the node that the cluster knows nothing of.
type station struct {
	fd  int
	to  unix.SockaddrLinklayer
	mac net.HardwareAddr // of weft0
}

func (c *cluster) station(n *nettest.ClusterNode) station {
	c.t.Helper()
	l, err := n.NS.Netlink().LinkByName("weft0")
	if err != nil {
		c.t.Fatal(err)
	}
	s := station{to: unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Attrs().Index}, mac: l.Attrs().HardwareAddr}
	n.NS.Do(func() {
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

// send sends a frame of the local experimental EtherType (IEEE 802) out of weft0.
func (c *cluster) send(s station, dst, src net.HardwareAddr) {
	c.t.Helper()
	frame := append(append(append([]byte{}, dst...), src...), 0x88, 0xb5)
	if err := unix.Sendto(s.fd, append(frame, make([]byte, 46)...), 0, &s.to); err != nil {
		c.t.Fatal(err)
	}
}

// frames counts what a node's lane out has got from weft0, and how many copies it made to flood.
func (c *cluster) frames(n *nettest.ClusterNode) (received, copied uint64) {
	c.t.Helper()
	for _, l := range c.lanes(n) {
		received, copied = received+l.Received, copied+l.Copied
	}
	return received, copied
}

// listen counts the frames of the experimental EtherType for two MACs that have come in on weft0.
func (s station) listen(one, other net.HardwareAddr) (ones, others int) {
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return ones, others
		}
		if n < 14 || from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING || binary.BigEndian.Uint16(buf[12:]) != 0x88b5 {
			continue
		}
		switch {
		case bytes.Equal(buf[:6], one):
			ones++
		case bytes.Equal(buf[:6], other):
			others++
		}
	}
}

// heard counts the frames for one MAC.
func (s station) heard(mac net.HardwareAddr) int {
	n, _ := s.listen(mac, nil)
	return n
}

// TestMACsAreLearnt: in mode tap the first frame to a station goes to all nodes, and once it has spoken the next goes to its
// node alone; when it speaks from another node, frames follow at once.
func TestMACsAreLearnt(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("underlay%d", family), func(t *testing.T) {
			c := up(t, "tap", family, nettest.ClusterOptions{Nodes: 3})
			a, b, d := c.station(c.Nodes[0]), c.station(c.Nodes[1]), c.station(c.Nodes[2])
			roaming := net.HardwareAddr{2, 9, 9, 9, 9, 9}
			everyone := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

			c.send(a, roaming, a.mac)
			atB, atD := 0, 0
			c.eventually("a frame to an unknown station reaches all nodes", func() error {
				atB, atD = atB+b.heard(roaming), atD+d.heard(roaming)
				if atB != 1 || atD != 1 {
					return fmt.Errorf("%d and %d frames", atB, atD)
				}
				return nil
			})
			for _, at := range []struct {
				name            string
				here, elsewhere station
			}{{"b", b, d}, {"c", d, b}, {"b again", b, d}} {
				c.send(at.here, everyone, roaming) // it speaks
				c.eventually("node a hears it", func() error {
					if a.heard(everyone) == 0 {
						return fmt.Errorf("no broadcast")
					}
					return nil
				})
				b.heard(roaming)
				d.heard(roaming)
				const n = 20
				for range n {
					c.send(a, roaming, a.mac)
				}
				here, elsewhere := 0, 0
				c.eventually("frames reach the station behind "+at.name, func() error {
					if here += at.here.heard(roaming); here != n {
						return fmt.Errorf("%d of %d", here, n)
					}
					return nil
				})
				// A frame to nobody follows them, flooded: what had been flooded before it is there when it is.
				nobody := net.HardwareAddr{2, 8, 8, 8, 8, 8}
				c.send(a, nobody, a.mac)
				c.eventually("the frame behind them is there", func() error {
					astray, last := at.elsewhere.listen(roaming, nobody)
					elsewhere += astray
					if last == 0 {
						return fmt.Errorf("not yet")
					}
					return nil
				})
				if elsewhere != 0 {
					t.Errorf("behind %s: %d frames went to another node too", at.name, elsewhere)
				}
			}

			// Pods' own traffic floods no more once neighbours are known: copies are made for floods only.
			c.allReach()
			beforeR, beforeC := c.frames(c.Nodes[0])
			if got := flood(t, c.Nodes[0].Pod, c.Nodes[1].Pod, c.Nodes[1].PodAddrs[0], 500); got != 500 {
				t.Errorf("%d of 500 packets arrived", got)
			}
			afterR, afterC := c.frames(c.Nodes[0])
			if afterR-beforeR < 500 || afterC-beforeC > 20 {
				t.Errorf("%d frames, %d copies: traffic to a known node was flooded", afterR-beforeR, afterC-beforeC)
			}
		})
	}
}
