package packettest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"weft/packet"
)

// Far is the other side of a port under test: the kernel behind a device, or a peer on the network.
type Far struct {
	Hop  *packet.Hop // what the port sends goes there; nil for inside ports
	From netip.Addr  // what From of received packets must say; the zero Addr = nothing to compare
	MTU  int         // the largest packet both directions take, bytes

	Write func(p []byte) error   // sends one packet to the port
	Read  func() ([]byte, error) // the next packet from the port; fails rather than block for ever

	// Oversize is a packet that the port receives but cannot present; nil where there is none.
	Oversize []byte
	// OversizeDrop is the Drop it gets.
	OversizeDrop packet.Drop
}

// patience bounds how long the suite waits for something that has to happen. It is no measure of
// speed: only a broken port gets there.
const patience = 20 * time.Second

// portPackets is how many packets the suite has in flight: a TUN queue holds 500.
const portPackets = 200

// Port is the suite for every port. open opens a port with one queue and returns the far side; it
// registers its own cleanup. Foreign packets (the kernel's own chatter on a device) are ignored.
func Port(t *testing.T, open func(t *testing.T) (packet.Port, Far)) {
	start := func(t *testing.T) (packet.Port, packet.Queue, Far) {
		port, far := open(t)
		t.Cleanup(func() {
			if err := port.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		if port.Name() == "" {
			t.Error("the port has no name")
		}
		if n := len(port.Queues()); n == 0 {
			t.Fatal("the port has no queue")
		}
		return port, port.Queues()[0], far
	}

	for _, slots := range []int{1, 7, packet.BatchSize} {
		t.Run(fmt.Sprintf("Recv/%d", slots), func(t *testing.T) {
			port, q, far := start(t)
			watchdog(t, port)
			want := portBatch(port.Layer(), far.MTU)
			for _, p := range want {
				if err := far.Write(p); err != nil {
					t.Fatalf("far side: %v", err)
				}
			}
			b := NewBatch(q, slots, far.MTU)
			for len(want) > 0 {
				for i := range b.Slots() { // what a lane leaves behind
					p := &b.Slots()[i]
					p.Hop, p.Flow, p.Drop = &packet.Hop{}, 9, packet.NoRoute
				}
				if err := q.Recv(b); err != nil {
					t.Fatalf("Recv, %d packets missing: %v", len(want), err)
				}
				if b.Len() == 0 {
					t.Fatal("Recv returned no packet")
				}
				for i := range b.Packets() {
					p := &b.Packets()[i]
					if !mine(p.Bytes(), port.Layer()) {
						continue
					}
					if len(want) == 0 {
						t.Fatalf("one packet too many: %x", p.Bytes())
					}
					if p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), want[0]) {
						t.Fatalf("%d missing: drop %v, got %x, want %x", len(want), p.Drop, p.Bytes(), want[0])
					}
					if p.Hop != nil || p.Flow != 0 {
						t.Fatal("Recv kept the slot's old Hop or Flow")
					}
					if far.From.IsValid() && p.From.Addr() != far.From {
						t.Fatalf("From is %v, want %v", p.From, far.From)
					}
					if p.Headroom() < 100 || cap(p.Tail())-p.Len() < packet.Tailroom {
						t.Fatalf("headroom %d, tailroom %d", p.Headroom(), cap(p.Tail())-p.Len())
					}
					want = want[1:]
				}
			}
		})
	}

	for _, slots := range []int{1, 7, packet.BatchSize} {
		t.Run(fmt.Sprintf("Send/%d", slots), func(t *testing.T) {
			port, q, far := start(t)
			want := portBatch(port.Layer(), far.MTU)
			b := NewBatch(q, slots, far.MTU)
			for rest := want; len(rest) > 0; {
				n := min(slots, len(rest))
				fill(b, rest[:n], far.Hop)
				if err := q.Send(b); err != nil {
					t.Fatalf("Send: %v", err)
				}
				for i := range b.Packets() {
					if d := b.Packets()[i].Drop; d != packet.Alive {
						t.Fatalf("Send dropped packet %d of the batch: %v", i, d)
					}
				}
				// Order is kept within a flow; flows may pass each other.
				flows := map[string][][]byte{}
				for _, p := range rest[:n] {
					flows[flowKey(inner(p, port.Layer()))] = append(flows[flowKey(inner(p, port.Layer()))], p)
				}
				for i := range n {
					got := readMine(t, far, port.Layer())
					key := flowKey(inner(got, port.Layer()))
					if flow := flows[key]; len(flow) == 0 || !bytes.Equal(got, flow[0]) {
						t.Fatalf("packet %d of %d: got %x, of its flow there should be %x", i, n, got, flow)
					}
					flows[key] = flows[key][1:]
				}
				rest = rest[n:]
			}
		})
	}

	// A packet that was dead before Send stays where it is and keeps its reason.
	t.Run("SendSkipsTheDead", func(t *testing.T) {
		port, q, far := start(t)
		packets := portBatch(port.Layer(), far.MTU)[:3]
		b := NewBatch(q, 3, far.MTU)
		fill(b, packets, far.Hop)
		b.Packets()[1].Drop = packet.NoRoute
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		for _, want := range [][]byte{packets[0], packets[2]} {
			if got := readMine(t, far, port.Layer()); !bytes.Equal(got, want) {
				t.Errorf("got %x, want %x", got, want)
			}
		}
		if d := b.Packets()[1].Drop; d != packet.NoRoute {
			t.Errorf("the dead packet's reason became %v", d)
		}
	})

	t.Run("Oversize", func(t *testing.T) {
		port, q, far := start(t)
		if far.Oversize == nil {
			return // every packet the far side can send fits
		}
		watchdog(t, port)
		good := portBatch(port.Layer(), far.MTU)[0]
		for _, p := range [][]byte{far.Oversize, good} {
			if err := far.Write(p); err != nil {
				t.Fatalf("far side: %v", err)
			}
		}
		b := NewBatch(q, 4, far.MTU)
		dropped := false
		for {
			if err := q.Recv(b); err != nil {
				t.Fatalf("Recv: %v", err)
			}
			for i := range b.Packets() {
				switch p := &b.Packets()[i]; {
				case p.Drop != packet.Alive:
					if p.Drop != far.OversizeDrop {
						t.Errorf("dropped as %v, want %v", p.Drop, far.OversizeDrop)
					}
					dropped = true
				case bytes.Equal(p.Bytes(), good):
					if !dropped {
						t.Error("the oversize packet was not reported")
					}
					return
				}
			}
		}
	})

	t.Run("CloseWakesRecv", func(t *testing.T) {
		port, q, far := start(t)
		first, result := make(chan struct{}), make(chan error, 1)
		go func() {
			b := NewBatch(q, 4, far.MTU)
			err := q.Recv(b)
			close(first)
			for err == nil {
				err = q.Recv(b)
			}
			result <- err
		}()
		if err := far.Write(portBatch(port.Layer(), far.MTU)[0]); err != nil {
			t.Fatalf("far side: %v", err)
		}
		await(t, first, "the first packet")
		if err := port.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		select {
		case err := <-result:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Recv after Close: %v, want net.ErrClosed", err)
			}
		case <-time.After(patience):
			t.Fatal("Recv is still blocked after Close")
		}
	})

	t.Run("CloseIsIdempotent", func(t *testing.T) {
		port, q, far := start(t)
		for range 3 {
			if err := port.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		b := NewBatch(q, 1, far.MTU)
		if err := q.Recv(b); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Recv after Close: %v, want net.ErrClosed", err)
		}
		fill(b, portBatch(port.Layer(), far.MTU)[:1], far.Hop)
		if err := q.Send(b); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after Close: %v, want net.ErrClosed", err)
		}
	})

	// Lanes of both directions are inside the port while it closes, and others ask for its counters.
	t.Run("CloseWhileBusy", func(t *testing.T) {
		port, q, far := start(t)
		packets := portBatch(port.Layer(), far.MTU)[:8]
		var lanes sync.WaitGroup
		received, sent := make(chan struct{}), make(chan struct{})
		lanes.Go(func() {
			b, once := NewBatch(q, 4, far.MTU), sync.OnceFunc(func() { close(received) })
			for {
				if err := q.Recv(b); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Recv: %v, want net.ErrClosed", err)
					}
					return
				}
				once()
			}
		})
		lanes.Go(func() {
			b, once := NewBatch(q, 8, far.MTU), sync.OnceFunc(func() { close(sent) })
			for {
				fill(b, packets, far.Hop)
				if err := q.Send(b); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Send: %v, want net.ErrClosed", err)
					}
					return
				}
				once()
			}
		})
		stop := make(chan struct{})
		var others sync.WaitGroup
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if k, ok := port.(packet.KernelDrops); ok {
						k.KernelDrops()
					}
					if f, ok := port.(packet.Features); ok {
						f.Features()
					}
				}
			}
		})
		for range 16 {
			if err := far.Write(packets[0]); err != nil {
				t.Fatalf("far side: %v", err)
			}
		}
		await(t, received, "a packet received")
		await(t, sent, "a batch sent")
		if err := port.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		gone := make(chan struct{})
		go func() { lanes.Wait(); close(gone) }()
		await(t, gone, "the lanes' end")
		close(stop)
		others.Wait()
	})

	t.Run("NoAllocs", func(t *testing.T) {
		port, q, far := start(t)
		watchdog(t, port)
		const runs = 50
		packets := portBatch(port.Layer(), far.MTU)
		for _, p := range packets[:runs+1] {
			if err := far.Write(p); err != nil {
				t.Fatalf("far side: %v", err)
			}
		}
		b := NewBatch(q, 1, far.MTU)
		if n := testing.AllocsPerRun(runs, func() {
			if err := q.Recv(b); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations per Recv", n)
		}
		b = NewBatch(q, 8, far.MTU)
		if n := testing.AllocsPerRun(runs, func() {
			fill(b, packets[:8], far.Hop)
			if err := q.Send(b); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations per Send", n)
		}
	})
}

// NewBatch makes a batch for q: of q's own memory where it has such.
func NewBatch(q packet.Queue, slots, room int) *packet.Batch {
	if own, ok := q.(packet.Batcher); ok {
		return own.NewBatch(slots)
	}
	return packet.NewBatch(slots, room)
}

// watchdog closes port when the test has lost its patience, so that a lost packet is a failure and
// not a hang.
func watchdog(t *testing.T, port packet.Port) {
	timer := time.AfterFunc(patience, func() { port.Close() })
	t.Cleanup(func() { timer.Stop() })
}

func await(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited %v for %s", patience, what)
	}
}

// magic marks the suite's own packets; it stands behind the UDP header.
const magic = 0x77656674

// portBatch makes portPackets different packets of both families and all sizes up to mtu.
func portBatch(layer packet.Layer, mtu int) [][]byte {
	flows := [][2]netip.AddrPort{
		{netip.MustParseAddrPort("10.244.1.2:1000"), netip.MustParseAddrPort("10.244.2.3:2000")},
		{netip.MustParseAddrPort("[fd00:10:244:1::2]:1000"), netip.MustParseAddrPort("[fd00:10:244:2::3]:2000")},
	}
	var all [][]byte
	for i := range portPackets {
		flow := flows[i%2]
		headers := linkHeader(layer) + IPHeader(flow[0].Addr()) + packet.UDPHeader
		n := 8 + i*37%(mtu-headers-8+1)
		if i < 2 {
			n = mtu - headers // the largest first: scatter that guesses sizes is wrong at once
		}
		p := UDP(flow[0], flow[1], n, byte(i))
		at := IPHeader(flow[0].Addr())
		binary.BigEndian.PutUint32(p[at+packet.UDPHeader:], magic)
		binary.BigEndian.PutUint32(p[at+packet.UDPHeader+4:], uint32(i))
		p[at+6], p[at+7] = 0, 0
		binary.BigEndian.PutUint16(p[at+6:], ^Sum(p[at:], PseudoSum(p, len(p)-at)))
		if p[0]>>4 == 4 {
			setID(p, uint16(i/len(flows))) // counting up in each flow, as Linux does it
		}
		if layer == packet.Ethernet {
			p = Ethernet([6]byte{2, 0, 0, 0, 0, 2}, [6]byte{2, 0, 0, 0, 0, 1}, p)
		}
		all = append(all, p)
	}
	return all
}

// mine says whether p is one of portBatch's.
func mine(p []byte, layer packet.Layer) bool {
	if len(p) < linkHeader(layer)+packet.IPv4Header {
		return false
	}
	at := headerLen(p, layer) + packet.UDPHeader
	return len(p) >= at+8 && binary.BigEndian.Uint32(p[at:]) == magic
}

// inner is the IP packet in p.
func inner(p []byte, layer packet.Layer) []byte { return p[linkHeader(layer):] }

func readMine(t *testing.T, far Far, layer packet.Layer) []byte {
	t.Helper()
	for {
		p, err := far.Read()
		if err != nil {
			t.Fatalf("far side: %v", err)
		}
		if mine(p, layer) {
			return p
		}
	}
}

// fill puts packets into b as route would leave them.
func fill(b *packet.Batch, packets [][]byte, hop *packet.Hop) {
	for i, data := range packets {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), data))
		p.Hop = hop
		p.Flow = 1
	}
	b.SetLen(len(packets))
}
