// Package hostnet makes the kernel's network state of one namespace be what weft wants, and keeps it so.
//
// It is declarative: each part of the daemon hands Apply all that it wants, under its name. The Host puts these
// together (merge), dumps what the kernel has, and adds, corrects and removes the difference. The kernel is the only memory, so that a
// restarted or killed daemon adopts what it finds: equal objects are never touched and traffic never notices.
//
// What is ours, and may therefore be changed and removed:
//
//	routes      protocol 87, in the main table and the tables Want names
//	addresses   protocol 87 on the loopback device (Want.Own)
//	links       "weft0", "weft-…", "weftbr0", and "weft" with 11 hexadecimal digits (Ours)
//	addresses,  on the links of Want: all but IPv6 link-local addresses and what the kernel itself
//	neighbours, learns (neighbours that are not permanent)
//	FDB
//	next hops   protocol 87
//	rules       protocol 87 (`ip rule`)
//	nftables    tables named weft*, and rules marked by RuleMark in the forward chains of others
//	programs    at the tcx hooks of devices: those this process attached, and those pinned in its directory (Pins)
//
// Everything else in the namespace is never touched. Only Cleanup goes further: it removes every link named
// weft*, every route of protocol 87, every nftables table named weft* and all that is pinned.
//
// # Reverse path filtering
//
// weft leaves net.ipv4.conf.*.rp_filter as the machine has it: replies to a peer's prefix leave by the device
// its packets came in on, so that strict filtering (1) passes and is worth having. A backend with one device
// per underlay family is the exception: two nodes may prefer different families, and then a prefix's packets
// come in by the other device. Such a backend wants rp_filter=2 (loose) on its own devices; the kernel uses the
// larger of "all" and the device's value, so that this overrides a strict "all".
package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// Protocol marks routes as weft's (rtm_protocol; `ip route` shows "proto 87").
	Protocol = 87

	// LinkPrefix starts the names of all devices and nftables tables that weft makes.
	LinkPrefix = "weft"

	// GuardMetric is the metric of the unreachable routes that keep overlay traffic from leaving in clear:
	// worse than anything a person or another daemon would use.
	GuardMetric = 4294960000

	// MainTable is the routing table that `ip route` shows (RT_TABLE_MAIN).
	MainTable = unix.RT_TABLE_MAIN
)

// Bridge is the name of the bridge that pods' links may be ports of.
const Bridge = LinkPrefix + "br0"

// Owned says whether a link of this name is a mode's.
func Owned(link string) bool { return link == "weft0" || strings.HasPrefix(link, "weft-") }

// PodLink says whether a link of this name is the node's end of a pod's: "weft" and 11 hexadecimal digits.
func PodLink(name string) bool {
	digits, ok := strings.CutPrefix(name, LinkPrefix)
	return ok && len(digits) == 11 && strings.Trim(digits, "0123456789abcdef") == ""
}

// Ours says whether a link of this name is one that a Host keeps, to be removed when no Want names it.
func Ours(link string) bool { return Owned(link) || PodLink(link) || link == Bridge }

// Want is everything weft wants of the namespace. The zero Want wants nothing: Apply then removes all that is
// ours. Apply keeps a Want until the next one: nobody may edit it.
type Want struct {
	// Network holds the overlay's prefixes. Each gets an unreachable route of GuardMetric, in force before
	// anything else is touched, so that what no better route takes is refused instead of sent in clear by the
	// default route. The routes outlive the process on purpose.
	Network []netip.Prefix

	Sysctls   []Sysctl
	Links     []Link
	Addrs     []Addr
	Own       []netip.Addr // on the loopback device, for a backend without a device of its own
	NextHops  []NextHop
	Routes    []Route
	Rules     []Rule
	Neighbors []Neighbor
	FDB       []FDBEntry
	Tables    []Table // of nftables
	Programs  []Program

	// Passage holds prefixes that forward chains of others let through, where they drop by default.
	Passage []netip.Prefix

	// Watch names further devices whose changes the owner is told of: the underlay's.
	Watch []string
}

// Host reconciles one network namespace: that of the thread which called New. There is one in a daemon, and its parts hand it what
// they want. Methods are safe for concurrent use; Apply runs one at a time.
type Host struct {
	log     *zap.Logger
	ns      netns.NsHandle
	rt      *handle         // safe for concurrent use: one exchange at a time
	strict  *netlink.Handle // for route dumps: the kernel picks. It refuses some other requests of the library
	ct      *netlink.Handle // for connection tracking; nil where the kernel has no netfilter
	raw     raw
	sysctls *sysctls
	bpffs   string // where that is mounted, or is to be
	pins    pinsOf

	underlay *Host // of the namespace that tunnel devices send in; nil = this one

	mu       sync.Mutex      // held by Apply; guards owners, prev, suspects, firewall and wrote
	owners   []*owner        // in the order in which they were named, or spoke first
	prev     *inForce        // after the last Apply; nil before the first
	suspects map[any]bool    // keys of objects of which the latest news is not what the last Apply left
	said     map[string]bool // settings that could not be made, and are told of

	firewall firewall
	keeper   keeper
	kept     atomic.Pointer[map[tableKey]bool]                                  // of keeper.held
	detours  func(rt *handle, v6 bool) (others []Rule, guard uint32, err error) // the function of the name, but in tests

	listening    atomic.Bool // Run hears of every change
	inside       atomic.Bool // it heard that something happened to the other end of a pod's link
	around       atomic.Bool // it heard of a route or rule of somebody else's, which may lead to the peers
	firewallNews atomic.Bool // it heard of a change of nftables by another process
	doubt        atomic.Bool // it heard of another one that may concern us, or may have missed some

	underlayNews atomic.Uint64 // see UnderlayNews
	outsideNews  atomic.Uint64 // see OutsideNews

	whole atomic.Int64 // how long the last look at everything took, ns

	obstacles atomic.Pointer[[]Obstacle]

	followers []func() // see Follow
	wrote     bool     // something to the kernel, since they were told last

	watched atomic.Pointer[map[int]bool] // devices that are not ours and whose changes concern us, by index
	repairs atomic.Uint64
}

// New opens the namespace the calling thread is in. It changes nothing. Owners are the parts that will Apply, the one whose word
// goes first first: until each of them has spoken, nothing is swept that this Host has not made itself.
func New(log *zap.Logger, owners ...string) (*Host, error) {
	if log == nil {
		log = zap.NewNop()
	}
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("hostnet: open the network namespace: %w", err)
	}
	h := &Host{log: log, ns: ns, sysctls: openSysctls(), bpffs: bpffs, suspects: map[any]bool{}, said: map[string]bool{}, detours: detours}
	for _, name := range owners {
		h.owner(name)
	}
	if err := h.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("hostnet: open netlink: %w", err), h.Close())
	}
	return h, nil
}

// Underlay has tunnel devices send in another namespace than they are in: that of a Host which nothing is applied to. It is called before
// the first Apply.
func (h *Host) Underlay(of *Host) { h.underlay = of }

// addVxlan makes a device here, whose packets leave by the underlay.
func (h *Host) addVxlan(name string, v Vxlan) error {
	if h.underlay != nil {
		return h.underlay.raw.addVxlan(name, v, int(h.ns))
	}
	return h.raw.addVxlan(name, v, -1)
}

// Follow has f called whenever this Host has changed what the kernel does with packets, before the call that did so returns, and not when a look
// finds all as it is to be; f must not call the Host. It is called before the first Apply.
func (h *Host) Follow(f func()) { h.followers = append(h.followers, f) }

// followed tells those who Follow.
func (h *Host) followed() {
	for _, f := range h.followers {
		f()
	}
}

// followedIf tells those who Follow where something was written to the kernel, or is wanted otherwise. The caller holds h.mu.
func (h *Host) followedIf(otherwise bool) {
	if h.wrote || otherwise {
		h.followed()
	}
	h.wrote = false
}

// handle is the library's, and what it has no words for.
type handle struct {
	*netlink.Handle
	raw raw
	tcx *tcx
}

// answerTimeout keeps a lost answer from hanging the daemon; RTNL may be held for seconds on a busy machine.
const answerTimeout = 30 * time.Second

// open opens sockets in the namespace the thread is in: to name it would take CAP_SYS_ADMIN.
func (h *Host) open() (err error) {
	rt, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	h.rt = &handle{Handle: rt, tcx: &tcx{within: h.within, pins: h.pinsDir}}
	if h.pins, err = pinsHere(h.ns); err != nil {
		return err
	}
	if h.strict, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if h.ct, err = netlink.NewHandle(unix.NETLINK_NETFILTER); err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return err
	}
	// The kernel cannot before Linux 4.20; the library picks as well.
	_ = h.strict.SetStrictCheck(true)
	if err = errors.Join(h.rt.SetSocketTimeout(answerTimeout), h.strict.SetSocketTimeout(answerTimeout)); err != nil {
		return err
	}
	h.raw, err = openRaw()
	h.rt.raw = h.raw
	return err
}

// Close frees what the Host holds. Everything it put into the kernel stays, but programs that are not pinned. Call it once, after Run
// returned.
func (h *Host) Close() error {
	var err error
	if h.rt != nil {
		h.rt.Close()
		err = h.rt.tcx.close()
	}
	if h.strict != nil {
		h.strict.Close()
	}
	if h.ct != nil {
		h.ct.Close()
	}
	if h.raw != nil {
		h.raw.close()
	}
	h.letGo()
	return errors.Join(err, h.ns.Close(), h.sysctls.close())
}

// Repairs counts objects that were in force, that somebody else then removed or changed, and that Apply put
// back; and foreign objects on our devices that it took away.
func (h *Host) Repairs() uint64 { return h.repairs.Load() }

// Guard puts the unreachable route of every prefix in force; see Want.Network. For the time before the first
// Apply: nothing is known of the cluster yet, and pods may already talk.
func (h *Host) Guard(network []netip.Prefix) error {
	_, err := h.guard(network)
	return err
}

// guard is Guard; made are the routes that were not there.
func (h *Host) guard(network []netip.Prefix) (made []Route, err error) {
	var errs []error
	for _, p := range network {
		r := guard(p)
		switch err := r.add(h.rt, 0, false); {
		case err == nil:
			made = append(made, r)
		case !errors.Is(err, unix.EEXIST): // there already, or Apply will say whose it is
			errs = append(errs, fmt.Errorf("hostnet: add route %s: %w%s", r, err, hint(err)))
		}
	}
	return made, errors.Join(errs...)
}

// hint names the remedy of an error that is common enough to have one.
func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return ": run as root or grant CAP_NET_ADMIN"
	case errors.Is(err, unix.EOPNOTSUPP):
		return ": the kernel lacks this; load its module or choose another mode"
	}
	return ""
}
