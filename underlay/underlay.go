// Package underlay is the outside port over UDP sockets: tunnel datagrams to and from the peers.
//
// # Sockets
//
// Every queue receives from one socket per local address, bound exactly to (address, port), and
// sends from sockets of its own, bound to (address, a port of 49152–65535). A packet's Flow picks
// the sending socket and so the outer source port, as RFC 7348 §5 asks: packets of one inner flow
// always leave from one port and keep their order, while different flows spread over
// queues × SendSockets ports (4 a queue by default, 2 bits). That is what the underlay's ECMP and the
// receiver's RSS, RPS and SO_REUSEPORT have to work with. A port for each flow would cost a socket each, and
// the runs of equal destination and source that make batches cheap.
//
// # Large datagrams
//
// Slots hold what an underlay of ordinary MTU carries. A kernel VXLAN device over veth passes inner
// TCP super-frames on as single datagrams of up to 64 KB; such a datagram spills into an overflow
// buffer and the packet borrows that (packet.Packet.Borrow), valid until the queue's next Recv.
//
// # Offload
//
// With Config.Offload a burst of datagrams costs about as much as one. Send puts runs of packets to
// one hop, equal in size but for a shorter last one, behind one UDP_SEGMENT message; Recv takes what
// the kernel has joined (UDP_GRO) and lays it over slots, each of which gets one datagram. Stages see
// plain packets either way. A burst that does not fit the batch is continued by the next Recv.
// Where the kernel refuses to join, packets go one by one and Features says so.
//
// # Not fragmented
//
// Path MTU discovery is on (RFC 7348 §4.3: VTEPs must not fragment): a datagram that does not fit
// is dropped as TooBig. The outer UDP checksum is always computed; received ones may be zero.
package underlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"weft/internal/sock"
	"weft/internal/steer"
	"weft/internal/wait"
	"weft/packet"
)

// defaultSendSockets and maxSendSockets bound the sending sockets of one queue and local address.
const (
	defaultSendSockets = 4
	maxSendSockets     = 16
)

// Config is what a UDP port is made from.
type Config struct {
	// Local are the node's tunnel endpoints: one per address family at most, at least one.
	Local []netip.Addr
	// Port is the UDP port to receive on.
	Port uint16
	// Batch moves many packets with one system call (recvmmsg, sendmmsg); without it each packet
	// costs one.
	Batch bool
	// SendSockets is how many source ports a queue sends from, 1–16; 0 = 4.
	SendSockets int
	// Offload joins datagrams to and from the kernel (UDP_SEGMENT, UDP_GRO). It needs Batch.
	Offload bool
	// Length tells how long a datagram is by what its headers say, from its first bytes (64 at
	// least, or all there are); 0 = they do not say. It settles what UDP_GRO leaves open: a kernel VXLAN device over
	// veth sends an inner UDP super-packet as one datagram, and the kernel here reports the size of
	// the inner segments as if they were datagrams. Such a datagram comes out of Recv whole, with
	// its Segment set. nil: the kernel is believed.
	Length func(b []byte) int
	// Filter is a socket filter for the receiving sockets: it sees a datagram from its UDP header on
	// and returns 0 for what is to be refused. nil: none.
	Filter []bpf.RawInstruction
	// Steer, if set, brings all packets of a sender's lane to one queue, and what is not for lanes to
	// sockets of its own (packet.Handshakes).
	Steer *steer.Rule
	// PlainPort is a second UDP port to receive on, which is not steered; 0 = none.
	PlainPort uint16
}

// Listen opens the port with the given number of queues in the calling thread's network namespace.
func Listen(cfg Config, queues int) (_ packet.Port, err error) {
	cfg, err = check(cfg)
	if err != nil {
		return nil, err
	}
	if queues < 1 {
		return nil, fmt.Errorf("underlay: %d queues: at least 1 is needed", queues)
	}
	p := &port{features: map[string]string{}}
	if p.stop, err = wait.NewStop(); err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	for i := range queues {
		q := &queue{recv: newReceiver(cfg), send: newSender(cfg)}
		var receiving []int
		for _, local := range cfg.Local {
			for _, udp := range cfg.ports() {
				shared := queues > 1 || cfg.Steer != nil && udp == cfg.Port
				s, err := p.receiving(netip.AddrPortFrom(local, udp), i, shared)
				if err != nil {
					return nil, err
				}
				if err := s.Filter(cfg.Filter); err != nil {
					return nil, fmt.Errorf("underlay: %w", err)
				}
				if cfg.Offload {
					p.feature("udp-gro", s.Set(unix.SOL_UDP, unix.UDP_GRO, 1, "UDP_GRO"))
				}
				q.recv.inlets = append(q.recv.inlets, inlet{fd: s.FD()})
				receiving = append(receiving, s.FD())
			}
			for range cfg.SendSockets {
				s, err := p.sending(local)
				if err != nil {
					return nil, err
				}
				if cfg.Offload { // 0 = joined only where a message asks for it
					q.send.gso = p.feature("udp-gso", s.Set(unix.SOL_UDP, unix.UDP_SEGMENT, 0, "UDP_SEGMENT"))
				}
				q.send.add(s.FD(), s.Bound().Port(), local.Is6())
			}
		}
		q.recv.waiter = p.stop.Waiter(wait.Readable, receiving...)
		q.send.gate = p.stop.Gate()
		p.queues = append(p.queues, q)
	}
	if cfg.Steer != nil {
		for _, local := range cfg.Local {
			c, err := cfg.Steer.Handshakes(netip.AddrPortFrom(local, cfg.Port), queues)
			if err != nil {
				return nil, fmt.Errorf("underlay: %w", err)
			}
			p.handshakes = append(p.handshakes, c)
		}
	}
	return p, nil
}

// ports are the UDP ports to receive on.
func (c Config) ports() []uint16 {
	if c.PlainPort == 0 {
		return []uint16{c.Port}
	}
	return []uint16{c.Port, c.PlainPort}
}

// check returns cfg with its defaults, or says what is wrong with it.
func check(cfg Config) (Config, error) {
	if len(cfg.Local) == 0 {
		return cfg, errors.New("underlay: no local address: name the node's endpoint")
	}
	if cfg.PlainPort == cfg.Port {
		cfg.PlainPort = 0
	}
	if cfg.Port == 0 {
		return cfg, errors.New("underlay: port 0: peers must know the port")
	}
	local := make([]netip.Addr, len(cfg.Local))
	for i, a := range cfg.Local {
		a = a.Unmap()
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast():
			return cfg, fmt.Errorf("underlay: local address %v: a unicast address is needed, for peers to answer to", a)
		case a.IsLinkLocalUnicast() && a.Is6():
			return cfg, fmt.Errorf("underlay: local address %v is link-local: use a global or unique local one", a)
		case i > 0 && a.Is4() == local[0].Is4():
			return cfg, fmt.Errorf("underlay: local addresses %v and %v are of one family: keep one of them", local[0], a)
		case i > 1:
			return cfg, fmt.Errorf("underlay: %d local addresses: one per family at most", len(cfg.Local))
		}
		local[i] = a
	}
	cfg.Local = local
	if cfg.Offload && !cfg.Batch {
		return cfg, errors.New("underlay: Offload without Batch: joining needs more than one packet a system call")
	}
	if cfg.SendSockets == 0 {
		cfg.SendSockets = defaultSendSockets
	}
	if cfg.SendSockets < 1 || cfg.SendSockets > maxSendSockets {
		return cfg, fmt.Errorf("underlay: %d sending sockets: 1–%d are possible", cfg.SendSockets, maxSendSockets)
	}
	return cfg, nil
}

// port implements packet.Port, packet.KernelDrops and packet.Features.
type port struct {
	stop       *wait.Stop
	queues     []packet.Queue
	handshakes []*sock.Conn

	mu       sync.Mutex // what follows, and the descriptors against Close
	closed   bool
	sockets  []*sock.Socket
	features map[string]string
}

// Name returns "udp".
func (p *port) Name() string { return "udp" }

// Layer returns packet.Tunnel.
func (p *port) Layer() packet.Layer { return packet.Tunnel }

// Queues returns the queues.
func (p *port) Queues() []packet.Queue { return p.queues }

// Handshakes returns the sockets for what is not for lanes: one per local address with Config.Steer.
func (p *port) Handshakes() []packet.Conn { return steer.Conns(p.handshakes) }

// Close wakes the receivers, waits until no lane is inside a system call and closes the sockets.
func (p *port) Close() error {
	err := p.stop.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if err != nil {
		err = fmt.Errorf("underlay: %w", err)
	}
	for _, c := range p.handshakes {
		err = errors.Join(err, c.Close())
	}
	for _, s := range p.sockets {
		if e := s.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("underlay: %w", e))
		}
	}
	return err
}

// KernelDrops returns the datagrams that arrived and found their socket's buffer full or were
// unreadable (bad UDP checksum), as the kernel counts them per socket: a lane's, or one for what is not for lanes.
func (p *port) KernelDrops() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var total uint64
	for _, s := range p.sockets {
		total += s.Overflow()
	}
	drops := map[string]uint64{"socket-overflow": total}
	steer.AddOverflow(drops, p.handshakes)
	return drops
}

// receiving opens a receiving socket of queue i; shared says whether there will be others. The first shares the port only once it has it:
// so another process that listens here, sharing or not, is an error and not a silent sharing.
func (p *port) receiving(at netip.AddrPort, i int, shared bool) (*sock.Socket, error) {
	s, err := sock.Listen(at, i > 0)
	if err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	p.sockets = append(p.sockets, s)
	p.buffer("receive-buffer", s.ReceiveBuffer())
	if i == 0 && shared {
		if err := s.Share(); err != nil {
			return nil, fmt.Errorf("underlay: %w", err)
		}
	}
	return s, nil
}

// sending opens a sending socket on a source port of its own.
func (p *port) sending(local netip.Addr) (*sock.Socket, error) {
	s, err := sock.Source(local)
	if err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	p.sockets = append(p.sockets, s)
	p.buffer("send-buffer", s.SendBuffer())
	return s, nil
}

func (p *port) buffer(name string, err error) {
	p.features[name] = "on"
	if err != nil {
		p.features[name] = err.Error()
	}
}

// feature records whether the kernel took an option, and returns that.
func (p *port) feature(name string, err error) bool {
	p.features[name] = "on"
	if err != nil {
		p.features[name] = "not supported by the kernel: " + err.Error()
	}
	return err == nil
}

// Features returns receive-buffer and send-buffer: "on", or why the buffers are smaller than wanted;
// and with Offload udp-gro and udp-gso.
func (p *port) Features() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	features := maps.Clone(p.features)
	for _, q := range p.queues {
		if errno := unix.Errno(q.(*queue).send.refusal.Load()); errno != 0 {
			features["udp-gso"] = fmt.Sprintf("the kernel refused a joined message: %v: datagrams are sent one by one", errno)
		}
	}
	return features
}

// queue implements packet.Queue.
type queue struct {
	recv *receiver
	send *sender
}

func (q *queue) Recv(b *packet.Batch) error { return q.recv.batch(b) }
func (q *queue) Send(b *packet.Batch) error { return q.send.batch(b) }

// Outer implements packet.Outward: of the outer headers only the source port is ours.
func (q *queue) Outer(p *packet.Packet) (h packet.OuterHeader) {
	if via, ok := q.send.pick(p); ok {
		h.Port = q.send.ports[via/maxSendSockets][via%maxSendSockets]
	}
	return h
}
