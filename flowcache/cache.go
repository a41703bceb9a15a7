// Package flowcache has eBPF carry established flows between pods and VXLAN peers past the node's own stack, as the same VXLAN on the
// wire. The stack decides about every flow; the cache remembers, and never decides.
//
// Four programs (package bpf) stand on the pods' links and on the underlay's devices. They watch how the stack carries a flow: it came from
// the pod, left to the peer, its other direction came from the peer, and went to the pod. Once all of that was seen of the same untranslated
// addresses and ports, on the same link and with the same MAC, user space is asked, and admits what conntrack holds established and
// untranslated and what is just as the plan has it (judge). From then on both directions are carried by the programs, but for what the stack has
// to see: fragments, IP options, extension headers, TCP's SYN, FIN and RST, what does not fit the MTU, whose TTL ends or whose ECN is odd.
//
// # What is remembered is forgotten
//
// Everything is stamped with a generation, a number that the programs compare with the one that is in force. Forget takes the next: that is one
// write, and every flow is the stack's again. It is called for all that this daemon puts in force, before that is reported as done
// (hostnet.Host.Follow), and for what others change as soon as the kernel tells (hostnet.Host.Hearsay). What was seen before a change, or
// while packets that the stack judged before it were still under way, admits nobody (settle). Where rules can change without a word, the cache
// stays off and says why.
//
// No flow breaks when it is the stack's again: connection tracking takes its packets for in window, and remembers it as long as it is used
// (hostnet.Host.KeepTracked).
//
// The programs live as long as the daemon, and carry nothing a few seconds after its last sign of life: where nobody hears of changes nothing may be
// remembered. Flows then go on by the stack. Every ten seconds the stack looks at each flow again, for what no news tells of.
package flowcache

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/backend/status"
	"weft/bpf"
	"weft/hostnet"
)

// most is how many flows there are at most; more are the stack's. As the maps of package bpf have it.
const most = 65536

// Forwarding is how the stack was told to carry packets. Immutable.
type Forwarding struct {
	MAC      [6]byte        // ours, of inner frames
	Prefixes []netip.Prefix // the node's own
	Peers    []status.Peer
	Underlay []string // devices
}

// Options are what a Cache is for.
type Options struct {
	Port uint16 // of VXLAN
	VNI  uint32
	Host *hostnet.Host
	Log  *zap.Logger
}

// Cache is the flows of one node. Safe for concurrent use.
type Cache struct {
	o       Options
	objects bpf.FlowObjects
	rt      *netlink.Handle
	thread  *thread
	own     map[ebpf.ProgramID]bool // our programs

	unsettled chan struct{} // holds a token while packets may be under way that were judged before the last change
	links     chan struct{} // holds a token while devices may be others

	mu         sync.Mutex
	gen        uint64
	open       bool   // all that was seen in this generation was judged by what is in force
	news       uint64 // counts what was heard
	off        string
	forwarding *peers
	numbers    numbers              // of peers, for the totals
	flows      map[bpf.FlowKey]flow // by key of outs

	attached map[int]*device // by index; of the goroutine of Run
	podLinks map[int]string  // links with programs; why not, where they cannot have them
}

// flow is what user space remembers of an admitted flow.
type flow struct {
	tuple   hostnet.Tuple // as the pod sends
	back    bpf.FlowKey   // of ins
	peer    string
	began   time.Time
	tracked *hostnet.Tracked // nil = connection tracking is not in use
	kept    time.Time        // when that was told last
}

// peers is a Forwarding that can be asked.
type peers struct {
	Forwarding
	by   map[netip.Prefix]*status.Peer
	bits []int
	dev  map[string]uint32 // numbers of devices
}

// New loads the programs. It works in the network namespace of the calling thread.
func New(o Options) (c *Cache, err error) {
	spec, err := bpf.LoadFlow()
	if err != nil {
		return nil, err
	}
	err = errors.Join(spec.Variables["port"].Set(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, o.Port))),
		spec.Variables["vni"].Set(o.VNI), spec.Variables["generation"].Set(uint64(1)))
	if err != nil {
		return nil, fmt.Errorf("flowcache: %w", err)
	}
	c = &Cache{o: o, gen: 1, unsettled: make(chan struct{}, 1), links: make(chan struct{}, 1), off: "it has not begun",
		flows: map[bpf.FlowKey]flow{}, attached: map[int]*device{}, podLinks: map[int]string{}}
	if err := spec.LoadAndAssign(&c.objects, nil); err != nil {
		remedy := ""
		if errors.Is(err, unix.EPERM) {
			remedy = ": run as root or grant CAP_BPF and CAP_NET_ADMIN"
		}
		return nil, fmt.Errorf("flowcache: load the programs: %w%s", err, remedy)
	}
	c.own, err = ids(c.objects.WeftFromPod, c.objects.WeftToPod, c.objects.WeftArrived, c.objects.WeftLeft)
	if err == nil {
		c.thread, err = newThread()
	}
	if err == nil {
		c.rt, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("flowcache: %w", err), c.Close())
	}
	c.numbers = newNumbers(c.objects.Totals.MaxEntries())
	return c, nil
}

// Close detaches and unloads: every flow is the stack's. Call it once, after Run returned.
func (c *Cache) Close() error {
	c.Forget()
	var errs []error
	for _, d := range c.attached {
		errs = append(errs, d.close())
	}
	if c.rt != nil {
		c.rt.Close()
	}
	if c.thread != nil {
		c.thread.close()
	}
	return errors.Join(append(errs, c.objects.Close())...)
}

// Forget makes every flow the stack's, before it returns.
func (c *Cache) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
}

// forget is Forget; the caller holds c.mu.
func (c *Cache) forget() {
	c.next()
	c.open = false
	clear(c.flows)
	poke(c.unsettled)
}

// next takes the next generation. The caller holds c.mu.
func (c *Cache) next() {
	c.gen++
	if err := c.objects.Generation.Set(c.gen); err != nil { // it is a write to memory
		c.o.Log.Error("the flow cache cannot forget", zap.Error(err))
	}
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// settle opens the cache again after each Forget. Packets that the stack had judged before may be seen by the programs after it; when a
// grace period of RCU has passed they are through (softirqs are its readers), and what is seen from then on was judged anew.
func (c *Cache) settle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.unsettled:
		}
		c.mu.Lock()
		gen := c.gen
		c.mu.Unlock()
		grace()
		c.mu.Lock()
		if c.gen == gen {
			if err := c.numbers.recycle(c.objects.Totals); err != nil {
				c.o.Log.Warn("some peers' packets past the stack are not counted", zap.Error(err))
			}
			c.next()
			c.open = true
		}
		c.mu.Unlock()
	}
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL: it waits for a grace period of RCU (membarrier(2), kernel/sched/membarrier.c).
const membarrierGlobal = 1

// grace waits until every packet that was under way is through.
func grace() {
	if _, _, e := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); e != 0 { // not with nohz_full: longer than any softirq
		time.Sleep(100 * time.Millisecond)
	}
}

// Follow is told how the stack carries packets from now on. Nothing that was seen before counts.
func (c *Cache) Follow(g Forwarding) {
	c.mu.Lock()
	same := c.forwarding != nil && reflect.DeepEqual(c.forwarding.Forwarding, g)
	c.mu.Unlock()
	if same { // a change of the kernel is told of by the Host
		return
	}
	p := &peers{Forwarding: g, by: map[netip.Prefix]*status.Peer{}, dev: map[string]uint32{}}
	seen := map[int]bool{}
	for i := range g.Peers {
		for _, prefix := range g.Peers[i].Prefixes {
			p.by[prefix.Masked()] = &g.Peers[i]
			if !seen[prefix.Bits()] {
				seen[prefix.Bits()] = true
				p.bits = append(p.bits, prefix.Bits())
			}
		}
	}
	slices.Sort(p.bits)
	slices.Reverse(p.bits)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forwarding = p
	c.forget()
	c.numbers.follow(g.Peers)
	poke(c.links)
}

// owner is the peer that has an address.
func (p *peers) owner(a netip.Addr) *status.Peer {
	for _, bits := range p.bits {
		if prefix, err := a.Prefix(bits); err == nil && p.by[prefix] != nil {
			return p.by[prefix]
		}
	}
	return nil
}

// every is how often flows are looked at: whether they are still used, and known to connection tracking.
const every = time.Second

const (
	// lease is how long flows are carried without a sign of life of this process: one that is stopped hears of no change.
	lease = 5 * time.Second
	// belt is the longest time without a look of the stack at a flow, for what no news tells of: rules with a clock, sets that packets fill
	// or that run out, packets that were held back while something changed.
	belt = 10 * time.Second
)

// Run carries flows until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	reader, err := ringbuf.NewReader(c.objects.Asks)
	if err != nil {
		return fmt.Errorf("flowcache: %w", err)
	}
	defer context.AfterFunc(ctx, func() { reader.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { c.settle(ctx) })
	wg.Go(func() { c.answer(ctx, reader) })

	deaf := make(chan error, 8)
	var stop func()
	listen := func() error {
		if stop != nil {
			stop()
		}
		for len(deaf) > 0 {
			<-deaf
		}
		stop, err = c.o.Host.Hearsay(c.heard, func(err error) {
			select {
			case deaf <- err:
			default:
			}
		})
		return err
	}
	wrong := listen()
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	judged := time.Now()
	placed := "" // why the programs are not where they have to be
	poke(c.links)
	for {
		select {
		case <-ctx.Done():
			return nil
		case wrong = <-deaf:
		case <-c.links:
			c.thread.do(func() { placed = c.attach() })
		case <-tick.C:
			if wrong != nil {
				wrong = listen()
			}
			c.keep()
			if time.Since(judged) >= belt {
				judged = time.Now()
				c.Forget()
			}
		}
		why := placed
		if wrong != nil {
			why = fmt.Sprintf("changes of the kernel are not heard: %v", wrong)
		} else {
			c.thread.do(func() { why = cmp.Or(c.o.Host.SilentRules(), why) })
		}
		c.turn(why)
		if err := c.objects.HeardUntil.Set(now() + uint64(lease)); err != nil {
			return fmt.Errorf("flowcache: %w", err)
		}
	}
}

// heard is told that something has changed.
func (c *Cache) heard(links bool) {
	c.mu.Lock()
	c.forget()
	c.news++
	c.mu.Unlock()
	if links {
		poke(c.links)
	}
}

// turn turns the cache off for a reason, or on.
func (c *Cache) turn(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why == c.off {
		return
	}
	c.off = why
	c.forget()
	switch {
	case c.forwarding == nil: // nothing is to be carried yet
	case why != "":
		c.o.Log.Warn("the flow cache is off: the kernel's own stack carries all flows", zap.String("reason", why))
	default:
		c.o.Log.Info("the flow cache is on")
	}
}

// Off says why no flow is cached, "" where flows are.
func (c *Cache) Off() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.off
}

// Lost counts packets that died for want of memory while their headers were changed.
func (c *Cache) Lost() (n uint64) {
	_ = c.objects.Lost.Get(&n)
	return n
}

// Count adds to what is told of peers what was carried past the stack.
func (c *Cache) Count(list []status.Peer) {
	c.mu.Lock()
	number := maps.Clone(c.numbers.of)
	c.mu.Unlock()
	for i := range list {
		n, ok := number[list[i].Node]
		var per []bpf.FlowTotal
		if !ok || c.objects.Totals.Lookup(n, &per) != nil {
			continue
		}
		for _, t := range per {
			list[i].TxPackets += t.OutPackets
			list[i].TxBytes += t.OutBytes
			list[i].RxPackets += t.InPackets
			list[i].RxBytes += t.InBytes
		}
	}
}
