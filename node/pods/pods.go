// Package pods attaches pods to the node: it gives out addresses, makes links, and keeps both over restarts, crashes
// and what others do to the kernel.
//
//	routed   veth pair; the pod has host prefixes (/32, /128) and a link-local gateway (169.254.1.1, fe80::1) that it
//	         need not ask for by ARP; the node has a route of protocol 87 per address
//	bridge   the node's ends of the veth pairs are ports of the bridge "weftbr0", which holds the node's own address of
//	         each prefix; the pod has the prefix's length and that address as its gateway
//
// Order keeps it whole: an attachment is written to the store before the kernel is touched, and forgotten after the
// kernel has let go. So whatever the kernel holds is in the store, and one that was cut off is undone at the next
// start, detach, GC or attach of the same name. All of an attachment in the kernel hangs on its link and goes with it.
// One whose addresses another IPAM gives out is written down before that does so, and forgotten after it has them back,
// which is the caller's to do: until then it stays announced (see api.AnnounceRequest).
package pods

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/api"
	"weft/hostnet"
)

// Styles of attachment.
const (
	Routed = "routed"
	Bridge = "bridge"
)

// every is how often pods' own namespaces are looked at without news from there.
const every = 5 * time.Second

// Node is what attaching needs to know of the node. Slices are not changed.
type Node struct {
	Prefixes []netip.Prefix // the node's own
	Network  []netip.Prefix // the overlay's
	MTU      int            // of pods, bytes
	Ports    []uint16       // UDP ports by which nodes talk
	Ready    bool
	Reason   string // why it is not ready
}

// Options say how to attach.
type Options struct {
	StateDir   string
	Attach     string // Routed or Bridge
	Masquerade bool

	ResultCache string      // where the runtime keeps what it knows of attachments; "" = where libcni does
	SpoofCheck  bool        // pods' packets are checked at their links, see check
	Node        func() Node // cheap, from any goroutine
	// Admit returns once the rules for a pod with these addresses are in force, before which it is not to run; nil = there are none. The names
	// are "" where nobody said them.
	Admit func(ctx context.Context, namespace, name string, addresses []netip.Addr) error
	Host  *hostnet.Host
	Log   *zap.Logger
}

// Manager attaches pods to one network namespace, that of the thread which called New. Safe for concurrent use.
type Manager struct {
	o     Options
	store *store
	ns    netns.NsHandle
	rt    *netlink.Handle
	inode uint64 // of the node's own namespace
	every time.Duration

	news chan struct{} // holds a token while there are suspects, or other attachments than before

	mu       sync.Mutex
	locks    map[string]*lock // by attachment
	suspects map[string]bool  // attachments in whose pod something has happened

	planning sync.Mutex // held from a look at held until the Host has the plan; guards both
	held     map[string]*attachment
	known    Node // the last that was known well enough to plan by

	inNetns atomic.Pointer[map[uint64]api.Pod] // attachments that stand, by the inode of their namespace

	lost bool // there may be pods that live and that the store does not know: no link is a stray

	busy sync.RWMutex // read-held by who attaches; GC waits for them, and they for it
}

var _ api.Pods = (*Manager)(nil)

// New opens the store and undoes what an earlier daemon was in the middle of.
func New(o Options) (*Manager, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	m := &Manager{o: o, every: every, news: make(chan struct{}, 1), locks: map[string]*lock{}, suspects: map[string]bool{}, held: map[string]*attachment{}}
	if m.ns, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("pods: open the network namespace: %w", err)
	}
	if m.inode, err = inode(fmt.Sprintf("/proc/self/fd/%d", int(m.ns))); err != nil {
		return nil, errors.Join(err, m.ns.Close())
	}
	if m.rt, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("pods: open netlink: %w", err), m.ns.Close())
	}
	records, lost, err := sound(filepath.Join(o.StateDir, File), o.Log)
	if err != nil {
		m.rt.Close()
		return nil, errors.Join(err, m.ns.Close())
	}
	if m.store, err = openStore(filepath.Join(o.StateDir, File), boot); err != nil {
		m.rt.Close()
		return nil, errors.Join(err, m.ns.Close())
	}
	if lost {
		if err := m.rebuild(records); err != nil {
			o.Log.Error("not all pods that live are written down: their links stay as they are", zap.Error(err))
			m.lost = true
		}
	}
	if err := m.recover(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Close lets go of the store; pods stay attached.
func (m *Manager) Close() error {
	m.rt.Close()
	return errors.Join(m.store.close(), m.ns.Close())
}

// Run keeps pods attached until ctx ends: it plans anew when the node changes, sets up pods' ends where the Host had to make a link
// anew or where something has happened in the pod, and gives back what pods had whose namespace is gone.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	changed := m.o.Host.Changed(Owner)
	said, all := "", true
	inside := watches{m, map[string]*watch{}}
	defer inside.closeAll()
	tend := m.tend
	for {
		inside.follow(m.attached())
		if err := tend(all); err != nil && err.Error() != said {
			said = err.Error()
			m.o.Log.Error("pods are not kept as they should be, trying again", zap.Error(err))
		} else if err == nil {
			said = ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.news:
			tend, all = m.refurnish, false
		case <-changed:
			tend, all = m.tend, false
		case <-tick.C:
			tend, all = m.tend, true
		}
	}
}

func (m *Manager) tend(all bool) error {
	err := m.sweep()
	m.planning.Lock()
	pods := len(m.held)
	err = errors.Join(err, m.apply())
	m.planning.Unlock()
	if pods > 0 {
		err = errors.Join(err, m.refurnish(all))
	}
	return err
}

// apply hands the Host what pods need. Before the node is known nothing is said where there are pods: what an earlier daemon put in
// force stays. The caller holds m.planning.
func (m *Manager) apply() error {
	m.index()
	if n := m.o.Node(); n.MTU > 0 && len(n.Prefixes) > 0 {
		m.known = n
	} else if m.known.MTU == 0 && len(m.held) > 0 {
		return nil
	}
	return m.o.Host.Apply(Owner, plan(m.sorted(), m.known, m.o))
}

// sorted returns all attachments in the order of their names. The caller holds m.planning.
func (m *Manager) sorted() []*attachment {
	return slices.SortedFunc(maps.Values(m.held), func(a, b *attachment) int { return strings.Compare(a.key(), b.key()) })
}

// attached returns copies of all attachments that stand.
func (m *Manager) attached() (list []attachment) {
	m.planning.Lock()
	defer m.planning.Unlock()
	for _, a := range m.held {
		if a.Result != nil {
			list = append(list, *a)
		}
	}
	return list
}

// hold puts the node's part of an attachment in force. An error is about this one; then it is not held.
func (m *Manager) hold(a *attachment) error {
	m.planning.Lock()
	defer m.planning.Unlock()
	m.held[a.key()] = a
	err := about(m.apply(), a.link())
	if err == nil {
		return nil
	}
	delete(m.held, a.key())
	taken := errors.Is(err, unix.EEXIST)
	err = errors.Join(fmt.Errorf("pods: put the node's part in force: %w", err), about(m.apply(), a.link()))
	if taken {
		return coded(api.CodeExists, "%v", err)
	}
	return err
}

// letGo takes the node's part of an attachment out of force, and with it the pod's end and all that hangs on both.
func (m *Manager) letGo(k string) error {
	m.planning.Lock()
	defer m.planning.Unlock()
	link := hostName(k)
	if a, ok := m.held[k]; ok {
		link = a.link()
	} else {
		return m.discard(link)
	}
	delete(m.held, k)
	m.poke()
	if err := about(m.apply(), link); err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	return m.discard(link) // where the Host has not put the plan in force yet
}

// discard removes a link that no attachment has.
func (m *Manager) discard(name string) error {
	if err := m.o.Host.Discard(name); err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	return nil
}

// Each tells of all attachments, also of those that are just being made, in the order of their names.
func (m *Manager) Each(tell func(namespace, name string, addresses []netip.Addr)) {
	m.planning.Lock()
	defer m.planning.Unlock()
	for _, a := range m.sorted() {
		tell(a.PodNamespace, a.PodName, a.Addrs)
	}
}

// furnished takes note that the pod's end was set up, for the node's end of this number.
func (m *Manager) furnished(k string, index int) {
	m.planning.Lock()
	defer m.planning.Unlock()
	if a := m.held[k]; a != nil {
		a.furnish = index
	}
}

// about returns what of an error of the Host is not about other links than this one.
func about(err error, link string) error {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range several.Unwrap() {
			errs = append(errs, about(e, link))
		}
		return errors.Join(errs...)
	}
	other := func(dev string) bool { return dev != link && dev != hostnet.Bridge }
	var o *hostnet.ObjectError
	var c *hostnet.Contradiction
	if errors.As(err, &o) && other(o.Dev) || errors.As(err, &c) && other(c.Dev) {
		return nil
	}
	return err
}

// lock is held by who works on one attachment.
type lock struct {
	sync.Mutex
	wanted int
}

func (m *Manager) lock(key string) (unlock func()) {
	m.mu.Lock()
	l := m.locks[key]
	if l == nil {
		l = &lock{}
		m.locks[key] = l
	}
	l.wanted++
	m.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.wanted--; l.wanted == 0 {
			delete(m.locks, key)
		}
	}
}

// hostName is the name of the node's end of an attachment's link: "weft" and 11 hexadecimal digits.
func hostName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "weft" + hex.EncodeToString(sum[:])[:11]
}

func wrongName(network, container, ifname string) error {
	for what, s := range map[string]string{"network": network, "container_id": container, "ifname": ifname} {
		if s == "" || strings.ContainsRune(s, 0) {
			return coded(api.CodeInvalid, "%s %q is not a name", what, s)
		}
	}
	if len(ifname) > 15 || ifname == "." || ifname == ".." || strings.ContainsAny(ifname, "/: \t\n\v\f\r") {
		return coded(api.CodeInvalid, "ifname %q is not an interface name: at most 15 bytes without '/', ':' and spaces", ifname)
	}
	return nil
}

// Announce writes an attachment down whose addresses another IPAM is about to give out.
func (m *Manager) Announce(ctx context.Context, q api.AnnounceRequest) error {
	if err := errors.Join(wrongName(q.Network, q.ContainerID, q.IfName), ready(m.o.Node())); err != nil {
		return err
	}
	m.busy.RLock()
	defer m.busy.RUnlock()
	k := key(q.Network, q.ContainerID, q.IfName)
	defer m.lock(k)()
	old, err := m.find(q.Network, q.ContainerID, q.IfName)
	switch {
	case err != nil:
		return err
	case old != nil && old.Result != nil:
		return coded(api.CodeExists, "%s of container %s is attached to %s already", q.IfName, q.ContainerID, q.Network)
	case old != nil && !old.Delegated:
		err = m.undo(old)
	}
	return errors.Join(err, ctx.Err(), m.store.finish(&record{Network: q.Network, ContainerID: q.ContainerID, IfName: q.IfName, Netns: q.Netns,
		Delegated: true, Since: time.Now().UTC()}))
}

// Attach attaches a pod. On an error nothing of it is left, and neither when ctx ends before: who asked cannot know then.
// A pod that was announced is so again.
func (m *Manager) Attach(ctx context.Context, q api.AttachRequest) (api.AttachResult, error) {
	var none api.AttachResult
	m.busy.RLock()
	defer m.busy.RUnlock()
	n := m.o.Node()
	asked, mac, err := m.understand(q, n)
	if err != nil {
		return none, err
	}
	ns, number, err := openNetns(q.Netns)
	if err != nil {
		return none, err
	}
	defer ns.Close()
	if number == m.inode {
		return none, coded(api.CodeInvalid, "%s is the node's own network namespace: a pod needs one of its own", q.Netns)
	}
	k := key(q.Network, q.ContainerID, q.IfName)
	defer m.lock(k)()
	old, err := m.find(q.Network, q.ContainerID, q.IfName)
	if err != nil {
		return none, err
	}
	if old != nil && old.Result != nil && old.Inode == number {
		if err := m.intact(old, q, asked); err != nil {
			return none, err
		}
		return *old.Result, nil
	}
	announced := old != nil && old.Result == nil && old.Delegated && len(q.Delegated) > 0
	if old != nil && !announced { // cut off, or of a namespace that is gone
		if err := m.undo(old); err != nil {
			return none, err
		}
	}
	r := &record{Network: q.Network, ContainerID: q.ContainerID, IfName: q.IfName, Netns: q.Netns, Inode: number,
		PodNamespace: q.PodNamespace, PodName: q.PodName, MAC: mac.String(), Bridged: m.o.Attach == Bridge, Since: time.Now().UTC()}
	if len(q.Delegated) > 0 {
		r.Delegated = true
		for _, d := range q.Delegated {
			r.Addrs = append(r.Addrs, d.Address.Addr())
		}
		err = m.store.finish(r)
	} else {
		err = m.store.reserve(r, asked, n.Prefixes)
	}
	if err != nil {
		return none, err
	}
	result, err := m.connect(r, q, n, ns)
	if err == nil && m.o.Admit != nil {
		if err = m.o.Admit(ctx, r.PodNamespace, r.PodName, r.Addrs); err != nil {
			err = coded(api.CodeUnavailable, "%v: try again", err)
		}
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = m.finish(r, result)
	}
	switch {
	case err != nil && announced:
		return none, errors.Join(err, m.keep(r))
	case err != nil:
		return none, errors.Join(err, m.undo(r))
	}
	return result, nil
}

// finish writes down that an attachment stands.
func (m *Manager) finish(r *record, result api.AttachResult) error {
	m.planning.Lock()
	defer m.planning.Unlock()
	r.Result = &result
	m.poke()
	m.index()
	return m.store.finish(r)
}

// intact says whether an attachment is what is asked for once more.
func (m *Manager) intact(r *record, q api.AttachRequest, asked []netip.Addr) error {
	for _, a := range asked {
		if !slices.Contains(r.Addrs, a) {
			return coded(api.CodeExists, "the interface is attached already, with %v and not %s: detach it first", r.Addrs, a)
		}
	}
	if q.MAC != "" && !strings.EqualFold(q.MAC, r.MAC) {
		return coded(api.CodeExists, "the interface is attached already, with MAC %s: detach it first", r.MAC)
	}
	if err := m.verify(r); err != nil {
		return coded(api.CodeExists, "the interface is attached already, but not as it was: %v: detach it first", err)
	}
	return nil
}

// Detach takes an attachment away and gives its addresses back. One that is not there is no error. Nothing is done where
// ctx has ended: who asked is gone, and may have attached the same anew.
func (m *Manager) Detach(ctx context.Context, q api.DetachRequest) error {
	if err := wrongName(q.Network, q.ContainerID, q.IfName); err != nil {
		return err
	}
	k := key(q.Network, q.ContainerID, q.IfName)
	defer m.lock(k)()
	r, err := m.find(q.Network, q.ContainerID, q.IfName)
	switch {
	case err != nil || ctx.Err() != nil:
		return errors.Join(err, ctx.Err())
	case r == nil:
		return m.letGo(k) // the store may have been lost
	case q.Keep:
		return m.keep(r)
	}
	return m.undo(r)
}

// keep takes an attachment out of the kernel; one whose addresses are another IPAM's stays announced, others are forgotten.
// The caller holds its lock.
func (m *Manager) keep(r *record) error {
	if !r.Delegated {
		return m.undo(r)
	}
	if err := m.letGo(r.key()); err != nil {
		return err
	}
	r.Result = nil
	return m.store.finish(r)
}

// undo takes an attachment out of the kernel and then out of the store. The caller holds its lock.
func (m *Manager) undo(r *record) error {
	if err := m.letGo(r.key()); err != nil {
		return err
	}
	return m.store.free(r)
}

// Check compares an attachment with the kernel and with what is expected.
func (m *Manager) Check(_ context.Context, q api.CheckRequest) error {
	if err := wrongName(q.Network, q.ContainerID, q.IfName); err != nil {
		return err
	}
	k := key(q.Network, q.ContainerID, q.IfName)
	defer m.lock(k)()
	r, err := m.find(q.Network, q.ContainerID, q.IfName)
	switch {
	case err != nil:
		return err
	case r == nil || r.Result == nil:
		return coded(api.CodeNotFound, "container %s has no interface %s of network %s", q.ContainerID, q.IfName, q.Network)
	}
	if q.Netns != "" {
		ns, number, err := openNetns(q.Netns)
		if err != nil {
			return err
		}
		ns.Close()
		if number != r.Inode {
			return coded(api.CodeMismatch, "the interface was attached to another namespace than %s", q.Netns)
		}
	}
	for _, ip := range q.Expect.IPs {
		if !slices.Contains(r.Result.IPs, ip) {
			return coded(api.CodeMismatch, "address %s is expected; the pod has %v", ip.Address, r.Addrs)
		}
	}
	if e := q.Expect.PodInterface; e.MAC != "" && !strings.EqualFold(e.MAC, r.MAC) {
		return coded(api.CodeMismatch, "MAC %s is expected; the pod has %s", e.MAC, r.MAC)
	}
	if e := q.Expect.MTU; e != 0 && e != r.Result.MTU {
		return coded(api.CodeMismatch, "MTU %d is expected; the pod has %d", e, r.Result.MTU)
	}
	return m.verify(r)
}

// GC takes away the attachments of a network that are not named as valid, and links that no attachment has.
func (m *Manager) GC(_ context.Context, q api.GCRequest) error {
	valid := map[api.Attachment]bool{}
	for _, a := range q.Valid {
		valid[a] = true
	}
	m.busy.Lock()
	defer m.busy.Unlock()
	all, err := m.store.all()
	errs := []error{err}
	for _, r := range all {
		if r.Network == q.Network && !valid[api.Attachment{ContainerID: r.ContainerID, IfName: r.IfName}] {
			errs = append(errs, m.takeIf(r, func(*record) bool { return true }, m.undo))
		}
	}
	return errors.Join(append(errs, m.strays())...)
}

// takeIf takes an attachment away if it is still there and still to go.
func (m *Manager) takeIf(r *record, still func(*record) bool, take func(*record) error) error {
	defer m.lock(r.key())()
	now, err := m.store.get(r.key())
	if err != nil || now == nil || !still(now) {
		return err
	}
	return take(now)
}

// recover undoes what was cut off, and holds what stands. Nobody is served yet.
func (m *Manager) recover() error {
	all, err := m.store.all()
	errs := []error{err}
	for _, r := range all {
		if r.Result != nil {
			m.held[r.key()] = newAttachment(r, r.Result.MTU)
			continue
		}
		m.o.Log.Warn("undoing an attach that was cut off", zap.String("container", r.ContainerID))
		errs = append(errs, m.keep(r))
	}
	m.index()
	return errors.Join(append(errs, m.strays())...)
}

// strays removes pods' links that are not in the store. A link is made with its attachment's lock held and the record
// written, so that one that is looked up under the same order is a stray for sure.
func (m *Manager) strays() error {
	if m.lost {
		return nil
	}
	links, err := m.podLinks()
	if err != nil {
		return err
	}
	all, err := m.store.all() // after the links: a link seen has its record by now, or had it
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, r := range all {
		known[r.link()] = true
	}
	var errs []error
	for _, name := range links {
		if !known[name] {
			m.o.Log.Warn("removing a pod's link that belongs to no pod", zap.String("device", name))
			errs = append(errs, m.discard(name))
		}
	}
	return errors.Join(errs...)
}

// sweep gives back what pods had whose namespace is gone: its path leads nowhere or to another one, and the link has
// gone with it. A path alone does not tell: a namespace lives on in the processes inside.
func (m *Manager) sweep() error {
	all, err := m.store.all()
	errs := []error{err}
	for _, r := range all {
		if r.Result != nil && m.dead(r) {
			m.o.Log.Info("a pod's namespace is gone, giving its addresses back", zap.String("container", r.ContainerID),
				zap.Stringers("addresses", r.Addrs))
			errs = append(errs, m.takeIf(r, func(now *record) bool { return now.Result != nil && m.dead(now) }, m.keep))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) dead(r *record) bool {
	number, err := inode(r.Netns)
	if err == nil && number == r.Inode || err != nil && !errors.Is(err, os.ErrNotExist) {
		return false
	}
	_, err = m.rt.LinkByName(r.link())
	return errors.As(err, &netlink.LinkNotFoundError{})
}

// Pods lists what is attached.
func (m *Manager) Pods() ([]api.Pod, error) {
	all, err := m.store.all()
	dropped, countErr := m.dropped()
	var list []api.Pod
	for _, r := range all {
		list = append(list, api.Pod{Network: r.Network, ContainerID: r.ContainerID, IfName: r.IfName, Netns: r.Netns,
			PodNamespace: r.PodNamespace, PodName: r.PodName, HostInterface: r.link(), IPs: slices.Concat([]netip.Addr{}, r.Addrs),
			MAC: r.MAC, Attached: r.Result != nil, Since: r.Since, Drops: dropped[r.link()]})
	}
	return list, errors.Join(err, countErr)
}

// In finds the pod whose network namespace has the inode, with the addresses of all its interfaces. Cheap, from any goroutine.
func (m *Manager) In(inode uint64) (found api.Pod, ok bool) {
	if all := m.inNetns.Load(); all != nil {
		found, ok = (*all)[inode]
	}
	return found, ok
}

// index has In find what is held. The caller holds m.planning.
func (m *Manager) index() {
	by := map[uint64]api.Pod{}
	for _, a := range m.sorted() {
		if a.Result == nil {
			continue
		}
		p := by[a.Inode]
		p.PodNamespace, p.PodName = a.PodNamespace, a.PodName
		p.IPs = append(p.IPs, a.Addrs...)
		by[a.Inode] = p
	}
	m.inNetns.Store(&by)
}

// Count is how many attachments there are.
func (m *Manager) Count() int {
	m.planning.Lock()
	defer m.planning.Unlock()
	return len(m.held)
}

// PodStatus says whether pods can be attached.
func (m *Manager) PodStatus() api.PodStatus {
	n := m.o.Node()
	err := ready(n)
	if err == nil {
		err = m.store.exhausted(n.Prefixes)
	}
	var e *api.Error
	switch {
	case err == nil:
		return api.PodStatus{Ready: true}
	case errors.As(err, &e):
		return api.PodStatus{Code: e.Code, Reason: e.Text}
	}
	return api.PodStatus{Code: api.CodeFailed, Reason: err.Error()}
}

func ready(n Node) error {
	if !n.Ready || len(n.Prefixes) == 0 {
		return coded(api.CodeUnavailable, "the node is not ready for pods: %s: try again", n.Reason)
	}
	return nil
}
