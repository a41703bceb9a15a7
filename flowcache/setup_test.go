package flowcache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"weft/backend"
	"weft/backend/kernelvxlan"
	"weft/backend/status"
	"weft/control"
	"weft/hostnet"
	"weft/internal/kernel"
	"weft/internal/nettest"
)

// tracking is a table by which nodes track connections, and drop what is out of window as kube-proxy does.
const tracking = `table inet others { chain forward { type filter hook forward priority 0; ct state invalid drop; ct state established accept; }; }`

// often is how many times something is done: fewer where the tests are to be quick, for the race detector has every packet cost many times as much.
func often(usual, long int) int {
	if os.Getenv("WEFT_TEST_LONG") != "" {
		return long
	}
	return usual
}

// rig is a cluster whose nodes run the cache over a vxlan device.
type rig struct {
	*nettest.Cluster
	t      testing.TB
	family int // of the underlay: 0 = v4, 1 = v6
	nodes  []*running
}

type running struct {
	*cached
	host *hostnet.Host
}

// newRig runs the cache on every node of a cluster.
func newRig(t testing.TB, family int, o nettest.ClusterOptions) *rig {
	t.Helper()
	nettest.RequireKernel(t, kernel.VXLAN, kernel.NFTables)
	nettest.RequireTool(t, "nft", "ip")
	r := &rig{Cluster: nettest.NewCluster(t, o), t: t, family: family}
	for _, n := range r.Nodes {
		n.NS.MustRun(t, "nft", tracking)
		r.nodes = append(r.nodes, r.open(n))
	}
	for i, n := range r.nodes {
		if err := n.Apply(r.state(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range r.nodes {
		nettest.Eventually(t, nettest.Patience, func() error {
			if off := n.cache.Off(); off != "" {
				return errors.New(off)
			}
			return nil
		})
	}
	return r
}

func (r *rig) open(n *nettest.ClusterNode) *running {
	r.t.Helper()
	var b backend.Backend
	var err error
	set := backend.Settings{Mode: "cached", Node: n.Name, Network: r.Network(), VNI: 42, Port: 4789, Queues: 1,
		Log: zaptest.NewLogger(r.t, zaptest.Level(zap.WarnLevel)).Named(n.Name)}
	n.NS.Do(func() {
		if set.Host, err = hostnet.New(set.Log, backend.Owner); err == nil {
			var p backend.Planner
			if p, err = kernelvxlan.NewPlannerWithoutChecksum(set); err == nil {
				if b, err = backend.ByKernel(set, p); err == nil {
					b = Over(b, set)
				}
			}
		}
	})
	if err != nil {
		r.t.Fatal(err)
	}
	run := &running{b.(*cached), set.Host}
	if run.cache == nil {
		r.t.Fatal(run.why)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := set.Host.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	wg.Go(func() {
		if err := b.Run(ctx, func(error) {}); err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := errors.Join(b.Close(), set.Host.Close()); err != nil {
			r.t.Error(err)
		}
	})
	return run
}

func (r *rig) node(i int) control.Node {
	n := r.Nodes[i]
	return control.Node{Name: n.Name, Prefixes: n.Prefixes, Endpoints: []netip.Addr{n.Underlay[r.family]}}
}

// state is the cluster as node i sees it.
func (r *rig) state(i int) control.State {
	s := control.State{Self: r.node(i), AsOf: time.Now()}
	for j := range r.Nodes {
		if j != i {
			s.Nodes = append(s.Nodes, r.node(j))
		}
	}
	return s
}

// flow finds a flow of a node's pod.
func (n *running) flow(protocol uint8, local, remote netip.AddrPort) (status.Flow, error) {
	for _, f := range n.Flows() {
		if f.Protocol == protocol && f.Local == local && f.Remote == remote {
			if !f.Cached {
				return f, fmt.Errorf("%v to %v: %s", local, remote, f.Reason)
			}
			return f, nil
		}
	}
	return status.Flow{}, fmt.Errorf("%v to %v is not seen", local, remote)
}

// socket opens a UDP socket in a namespace, with room for what a slow reader leaves.
func socket(t testing.TB, ns *nettest.NS, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	var err error
	ns.Do(func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
		if at.Addr().Is4() {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1), unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 0x29)) // a DSCP, and ECT(1)
		} else {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1), unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0x29))
		}
	}); errors.Join(e, err) != nil {
		t.Fatal(errors.Join(e, err))
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// received is a datagram and what came with it.
type received struct {
	number uint64
	from   netip.AddrPort
	ttl    int
	tos    int
}

// read reads one datagram.
func read(c *net.UDPConn, buf []byte) (received, error) {
	var oob [256]byte
	n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob[:])
	if err != nil {
		return received{}, err
	}
	r := received{from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	if n < 8 {
		return r, fmt.Errorf("%d bytes", n)
	}
	r.number = binary.BigEndian.Uint64(buf)
	for i, b := range buf[8:n] {
		if b != byte(r.number)+byte(i) {
			return r, fmt.Errorf("datagram %d is another one from byte %d on", r.number, i+8)
		}
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL, m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT:
			r.ttl = int(binary.NativeEndian.Uint32(m.Data))
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS:
			r.tos = int(m.Data[0])
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS:
			r.tos = int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return r, err
}

// datagram is a payload that tells its number.
func datagram(number uint64, size int) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, size), number)
	for i := 0; len(b) < size; i++ {
		b = append(b, byte(number)+byte(i))
	}
	return b
}
