package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Link is a device of ours, wanted up. At most one of Vxlan, Veth and Bridge says how to make it; without any, somebody else does
// (a TUN port), and only the other fields are looked after.
type Link struct {
	Name string  // starts with LinkPrefix
	MTU  int     // bytes; 0 = as it is
	MAC  [6]byte // zero = as it is
	// Quiet keeps IPv6 from giving the device a link-local address by itself: all its addresses are then weft's. So it is
	// with Vxlan.
	Quiet bool
	// Master is the bridge that the device is a port of, with frames let back out of the port they came in by (hairpin):
	// a pod may be behind a service of its own. "" = none that is looked after.
	Master string

	Vxlan  *Vxlan // one of the same name with other attributes is made anew
	Veth   *Veth
	Bridge bool
}

func (l Link) quiet() bool { return l.Quiet || l.Vxlan != nil }

// Veth is the node's end of a pair whose other end is a pod's.
type Veth struct {
	Netns   string // path of the pod's namespace
	Inode   uint64 // of that: the path may come to mean another one
	Peer    string // name of the pod's end
	PeerMAC [6]byte
}

// Vxlan is a Linux VXLAN device that learns nothing: all it knows is in its FDB.
type Vxlan struct {
	VNI      uint32     // 24 bits
	Port     uint16     // UDP, local and remote
	Local    netip.Addr // outer source; its family is the device's
	Checksum bool       // a real outer UDP checksum; false sends zero, and takes it over IPv6
}

// zero6 says whether a device over IPv6 sends and takes checksums of zero.
func (v Vxlan) zero6() bool { return v.Local.Is6() && !v.Checksum }

// is says whether a device is the one that v describes.
func (v Vxlan) is(have netlink.Link) bool {
	k, ok := have.(*netlink.Vxlan)
	return ok && !k.Learning && !k.FlowBased && k.Group == nil &&
		v == Vxlan{VNI: uint32(k.VxlanId), Port: uint16(k.Port), Local: ipnet.Addr(k.SrcAddr), Checksum: k.UDPCSum} &&
		k.UDP6ZeroCSumTx == v.zero6() && k.UDP6ZeroCSumRx == v.zero6()
}

func (l Link) String() string {
	s := "link " + l.Name
	switch {
	case l.Vxlan != nil:
		s += fmt.Sprintf(" vxlan %d port %d local %s", l.Vxlan.VNI, l.Vxlan.Port, l.Vxlan.Local)
	case l.Veth != nil:
		s += fmt.Sprintf(" veth peer %s in %s", l.Veth.Peer, l.Veth.Netns)
	case l.Bridge:
		s += " bridge"
	}
	return fmt.Sprintf("%s mtu %d", s, l.MTU)
}

// dumpLinks returns all devices of the namespace.
func dumpLinks(rt *handle) ([]netlink.Link, error) { return dump(rt.LinkList) }

// flatLink is a Link that == compares.
type flatLink struct {
	Link        // without its pointers
	vxlan, veth bool
	v           Vxlan
	p           Veth
}

func (l Link) flat() flatLink {
	f := flatLink{Link: l, vxlan: l.Vxlan != nil, veth: l.Veth != nil}
	if f.vxlan {
		f.v = *l.Vxlan
	}
	if f.veth {
		f.p = *l.Veth
	}
	f.Vxlan, f.Veth = nil, nil
	return f
}

// same says whether two wanted links are equal.
func (l Link) same(o Link) bool { return l.flat() == o.flat() }

// syncLinks makes the wanted devices exist as described, and learns all devices' numbers.
func (p *pass) syncLinks() {
	links, err := dumpLinks(p.h.rt)
	if err != nil {
		p.fail(fmt.Errorf("hostnet: list links: %w", err))
		return
	}
	byName := map[string]netlink.Link{}
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	changed := false
	for _, want := range p.links {
		did, err := p.syncLink(want.object, byName[want.object.Name], links)
		if err != nil {
			want.owner.fail(&ObjectError{Object: "link " + want.object.Name, Dev: want.object.Name, Err: err})
		} else {
			p.now.links[want.object.Name] = want.object
		}
		changed = changed || did
	}
	if changed {
		p.h.wrote = true
		if links, err = dumpLinks(p.h.rt); err != nil {
			p.fail(fmt.Errorf("hostnet: list links: %w", err))
		}
	}
	for _, l := range links {
		p.names[l.Attrs().Index], p.index[l.Attrs().Name] = l.Attrs().Name, l.Attrs().Index
	}
	p.watch()
}

// strayLink says whether a device is one of ours that nobody wants.
func (p *pass) strayLink(name string) bool {
	_, retired := p.before.links[name]
	return Ours(name) && !p.ours[name] && (p.settled || retired)
}

// removeStrayLinks removes devices of ours that nobody wants any more, once nothing leads over them.
func (p *pass) removeStrayLinks() {
	for index, name := range p.names {
		if !p.strayLink(name) {
			continue
		}
		_, retired := p.before.links[name]
		p.h.changed("removed", name, !p.first && !retired, "not wanted")
		p.fail(p.h.removeLink(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}}))
		p.h.wrote = true
		delete(p.names, index)
		delete(p.index, name)
	}
}

// yield removes strays among VXLAN devices with this VNI and port: only one device can have them.
func (p *pass) yield(to Vxlan, links []netlink.Link) (did bool) {
	for _, l := range links {
		have, ok := l.(*netlink.Vxlan)
		if ok && uint32(have.VxlanId) == to.VNI && uint16(have.Port) == to.Port && p.strayLink(have.Name) {
			_, retired := p.before.links[have.Name]
			p.h.changed("removed", have.Name, !p.first && !retired, "not wanted")
			p.fail(p.h.removeLink(l))
			did = true
		}
	}
	return did
}

// Clear removes devices of ours but the one called keep: those of the mode that this node had before. A backend that opens
// ports of its own calls it first, since a device may hold the UDP port. What led over them is unreachable from then on
// (GuardMetric), not in clear, until Apply.
func (h *Host) Clear(keep string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	links, err := dumpLinks(h.rt)
	if err != nil {
		return fmt.Errorf("hostnet: list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if name := l.Attrs().Name; Owned(name) && name != keep {
			h.log.Info("removed", zap.String("object", name), zap.String("reason", "it is another mode's"))
			errs = append(errs, h.removeLink(l))
		}
	}
	return errors.Join(errs...)
}

func (h *Host) removeLink(l netlink.Link) error {
	if err := h.rt.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("hostnet: remove link %s: %w%s", l.Attrs().Name, err, hint(err))
	}
	return nil
}

// syncLink corrects a device, nil for one that does not exist, or makes it (anew). It says whether it changed
// anything.
func (p *pass) syncLink(want Link, have netlink.Link, all []netlink.Link) (bool, error) {
	if !strings.HasPrefix(want.Name, LinkPrefix) {
		return false, fmt.Errorf("not ours: its name does not start with %s", LinkPrefix)
	}
	// A device that was in force just so and no longer is: somebody else's doing.
	before, known := p.before.links[want.Name]
	repair := known && before.same(want)
	if !want.made() {
		if have == nil {
			return false, errors.New("does not exist")
		}
		return p.adjustLink(want, have, repair)
	}
	reason := "it was missing"
	if have != nil {
		if want.is(have) && (want.Vxlan == nil || !p.h.raw.fragments(have.Attrs().Index)) {
			return p.adjustLink(want, have, repair)
		}
		reason = "it had other attributes"
		if err := p.h.rt.LinkDel(have); err != nil && !errors.Is(err, unix.ENODEV) {
			return true, fmt.Errorf("remove, to make it anew: %w", err)
		}
	}
	p.anew[want.Name] = !repair
	if err := p.makeLink(want, all); err != nil {
		return true, err
	}
	p.h.changed("made", want.Name, repair, reason)
	if p.h.firewall.anew == nil {
		p.h.firewall.anew = map[string]bool{}
	}
	p.h.firewall.anew[want.Name] = true
	made, err := p.h.linkByName(want.Name)
	if err != nil {
		return true, err
	}
	_, err = p.adjustLink(want, made, false)
	return true, err
}

// genModeNone is the IPv6 address generation mode without a link-local address, and so without router
// solicitations and reports (IN6_ADDR_GEN_MODE_NONE, linux/if_link.h).
const genModeNone = 1

// adjustLink corrects what can be corrected while a device carries traffic.
func (p *pass) adjustLink(want Link, have netlink.Link, repair bool) (bool, error) {
	is := have.Attrs()
	var wrong []string
	var errs []error
	if want.MTU != 0 && is.MTU != want.MTU {
		wrong = append(wrong, fmt.Sprintf("MTU %d", is.MTU))
		errs = append(errs, p.h.rt.LinkSetMTU(have, want.MTU))
	}
	if mac := macOf(is.HardwareAddr); want.MAC != [6]byte{} && mac != want.MAC {
		wrong = append(wrong, "MAC "+macString(mac))
		errs = append(errs, p.h.rt.LinkSetHardwareAddr(have, want.MAC[:]))
	}
	set, err := p.h.settle(want.Name)
	wrong, errs = append(wrong, set...), append(errs, err)
	// Asked for now, since a larger MTU may just have brought IPv6 back to the device, with the machine's own
	// mode. The library can set the mode but does not read it; before the device is up it works.
	mode, err := p.h.sysctls.get("ipv6/conf/" + want.Name + "/addr_gen_mode")
	if want.quiet() && err == nil && mode != strconv.Itoa(genModeNone) {
		wrong = append(wrong, "address generation on")
		errs = append(errs, p.h.rt.LinkSetIP6AddrGenMode(have, genModeNone))
	}
	if want.Master != "" {
		// Asked for by name: it may have been made a moment ago.
		master, err := p.h.rt.LinkByName(want.Master)
		if err != nil {
			errs = append(errs, fmt.Errorf("master %s: %w", want.Master, err))
		} else if is.MasterIndex != master.Attrs().Index {
			wrong = append(wrong, "not a port of "+want.Master)
			errs = append(errs, p.h.rt.LinkSetMaster(have, master), p.h.rt.LinkSetHairpin(have, true))
		}
	}
	if is.Flags&net.FlagUp == 0 {
		wrong = append(wrong, "down")
		errs = append(errs, p.h.rt.LinkSetUp(have))
	}
	if len(wrong) > 0 && repair {
		p.h.changed("corrected", want.Name, true, strings.Join(wrong, ", "))
	}
	return len(wrong) > 0, errors.Join(errs...)
}

// linkByName asks for one device.
func (h *Host) linkByName(name string) (netlink.Link, error) {
	l, err := h.rt.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("device %s does not exist: set node.interface to one that does", name)
	}
	return l, err
}

// Discard removes a link of ours that no owner wants, and with it all that hangs on it. One that is not there is no error.
func (h *Host) Discard(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.owners {
		if !Ours(name) || slices.ContainsFunc(o.want.Links, func(l Link) bool { return l.Name == name }) {
			return fmt.Errorf("hostnet: link %s is not to be removed: it is wanted, or not weft's", name)
		}
	}
	l, err := h.rt.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hostnet: remove link %s: %w", name, err)
	}
	defer h.followed()
	return h.removeLink(l)
}
