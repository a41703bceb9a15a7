package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Link is a device of ours, wanted up.
type Link struct {
	Name string  // starts with LinkPrefix
	MTU  int     // bytes; 0 = as it is
	MAC  [6]byte // zero = as it is
	// Vxlan describes a VXLAN device to be made here; one of the same name with other attributes is made
	// anew. nil: somebody else makes the device (a TUN port); only MTU, MAC and "up" are looked after.
	Vxlan *Vxlan
}

// Vxlan is a Linux VXLAN device that learns nothing: all it knows is in its FDB.
type Vxlan struct {
	VNI      uint32     // 24 bits
	Port     uint16     // UDP, local and remote
	Local    netip.Addr // outer source; its family is the device's
	Checksum bool       // a real outer UDP checksum; false sends zero, and takes it over IPv6
}

// link is one entry of the kernel's device table.
type link struct {
	name     string
	index    int32
	mtu      int
	up       bool
	loopback bool
	mac      [6]byte
	kind     string // "vxlan", "veth", "tun", …; "" for hardware
	vxlan    vxlanState
	inet6    bool  // IPv6 runs on it
	genMode  uint8 // IPv6 address generation, where it does
	stats    Counters
}

// vxlanState is what distinguishes one VXLAN device from another.
type vxlanState struct {
	Vxlan
	zero6Tx, zero6Rx bool
	odd              bool // learning, external, or with a default remote
}

// Counters are a device's packets that got lost.
type Counters struct {
	RxErrors, TxErrors, RxDropped, TxDropped, TxCarrier uint64
}

// IFLA_VXLAN_* (linux/if_link.h).
const (
	vxlanID         = 1
	vxlanGroup      = 2
	vxlanLocal      = 4
	vxlanLearning   = 7
	vxlanPort       = 15
	vxlanGroup6     = 16
	vxlanLocal6     = 17
	vxlanUDPCsum    = 18
	vxlanZeroCsum6T = 19
	vxlanZeroCsum6R = 20
	vxlanCollect    = 25
)

// IFLA_INET6_ADDR_GEN_MODE and its value for "no link-local address" (linux/if_link.h).
const (
	inet6AddrGenMode = 8
	genModeNone      = 1
)

// minIPv6MTU is the MTU below which the kernel takes IPv6 off a device (RFC 8200 §5).
const minIPv6MTU = 1280

// ifinfomsg (linux/rtnetlink.h), 16 bytes: family 1 | pad 1 | type 2 | index 4 | flags 4 | change 4
const sizeofIfInfomsg = unix.SizeofIfInfomsg

func linkMessage(kind, flags uint16, index int32) message {
	m := message{kind: kind, flags: flags, body: make([]byte, sizeofIfInfomsg, 192)}
	native.PutUint32(m.body[4:], uint32(index))
	return m
}

// state is the device's identity as the kernel will report it.
func (v Vxlan) state() vxlanState {
	zero6 := v.Local.Is6() && !v.Checksum
	return vxlanState{Vxlan: v, zero6Tx: zero6, zero6Rx: zero6}
}

// create returns the requests that make the device and silence it, still down.
func (l Link) create() message {
	m := linkMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0)
	m.text(unix.IFLA_IFNAME, l.Name)
	if l.MTU != 0 {
		m.u32(unix.IFLA_MTU, uint32(l.MTU))
	}
	if l.MAC != [6]byte{} {
		m.attr(unix.IFLA_ADDRESS, l.MAC[:])
	}
	v := l.Vxlan
	s := v.state()
	m.nest(unix.IFLA_LINKINFO, func() {
		m.text(unix.IFLA_INFO_KIND, "vxlan")
		m.nest(unix.IFLA_INFO_DATA, func() {
			m.u32(vxlanID, v.VNI)
			m.attr(vxlanPort, binary.BigEndian.AppendUint16(nil, v.Port))
			if v.Local.Is4() {
				m.attr(vxlanLocal, v.Local.AsSlice())
			} else {
				m.attr(vxlanLocal6, v.Local.AsSlice())
			}
			m.flag(vxlanLearning, false)
			m.flag(vxlanUDPCsum, v.Checksum)
			m.flag(vxlanZeroCsum6T, s.zero6Tx)
			m.flag(vxlanZeroCsum6R, s.zero6Rx)
		})
	})
	return m
}

// noAutoAddr keeps IPv6 from giving the device a link-local address, with its router solicitations and reports.
// It works before the device is up.
func noAutoAddr(index int32) message {
	m := linkMessage(unix.RTM_SETLINK, 0, index)
	m.nest(unix.IFLA_AF_SPEC, func() {
		m.nest(unix.AF_INET6, func() { m.u8(inet6AddrGenMode, genModeNone) })
	})
	return m
}

// set returns the request that corrects MTU and MAC, where they are wanted.
func (l Link) set(index int32) message {
	m := linkMessage(unix.RTM_SETLINK, 0, index)
	if l.MTU != 0 {
		m.u32(unix.IFLA_MTU, uint32(l.MTU))
	}
	if l.MAC != [6]byte{} {
		m.attr(unix.IFLA_ADDRESS, l.MAC[:])
	}
	return m
}

func setUp(index int32) message {
	m := linkMessage(unix.RTM_SETLINK, 0, index)
	native.PutUint32(m.body[8:], unix.IFF_UP)
	native.PutUint32(m.body[12:], unix.IFF_UP)
	return m
}

func deleteLink(index int32) message { return linkMessage(unix.RTM_DELLINK, 0, index) }

// dumpLinks returns all devices of the namespace.
func dumpLinks(s *socket) ([]link, error) {
	return dump(s, linkMessage(unix.RTM_GETLINK, 0, 0), unix.RTM_NEWLINK, parseLink)
}

func parseLink(b []byte) (l link, ok bool) {
	if len(b) < sizeofIfInfomsg {
		return l, false
	}
	flags := native.Uint32(b[8:])
	l.index, l.up, l.loopback = int32(native.Uint32(b[4:])), flags&unix.IFF_UP != 0, flags&unix.IFF_LOOPBACK != 0
	for kind, v := range attrs(b[sizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(v)
		case unix.IFLA_MTU:
			l.mtu = int(u32(v))
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_STATS64:
			l.stats = parseStats(v)
		case unix.IFLA_LINKINFO:
			l.kind, l.vxlan = parseLinkInfo(v)
		case unix.IFLA_AF_SPEC:
			l.genMode, l.inet6 = parseInet6(v)
		}
	}
	return l, l.name != ""
}

func parseLinkInfo(b []byte) (kind string, v vxlanState) {
	var data []byte
	for k, value := range attrs(b) {
		switch k {
		case unix.IFLA_INFO_KIND:
			kind = unix.ByteSliceToString(value)
		case unix.IFLA_INFO_DATA:
			data = value
		}
	}
	if kind != "vxlan" {
		return kind, v
	}
	for k, value := range attrs(data) {
		on := len(value) > 0 && value[0] != 0
		switch k {
		case vxlanID:
			v.VNI = u32(value)
		case vxlanLocal, vxlanLocal6:
			v.Local, _ = netip.AddrFromSlice(value)
		case vxlanPort:
			if len(value) >= 2 {
				v.Port = binary.BigEndian.Uint16(value)
			}
		case vxlanUDPCsum:
			v.Checksum = on
		case vxlanZeroCsum6T:
			v.zero6Tx = on
		case vxlanZeroCsum6R:
			v.zero6Rx = on
		case vxlanLearning, vxlanCollect:
			v.odd = v.odd || on
		case vxlanGroup, vxlanGroup6:
			v.odd = true
		}
	}
	return kind, v
}

// parseInet6 reads the IPv6 part of a device; false where IPv6 does not run on it, as with an MTU below 1280.
func parseInet6(b []byte) (mode uint8, ok bool) {
	for fam, value := range attrs(b) {
		if fam != unix.AF_INET6 {
			continue
		}
		ok = true
		for k, v := range attrs(value) {
			if k == inet6AddrGenMode && len(v) > 0 {
				mode = v[0]
			}
		}
	}
	return mode, ok
}

// parseStats reads rtnl_link_stats64: rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors,
// rx_dropped, tx_dropped, multicast, collisions, five rx_*_errors and rx_missed (10–15), tx_aborted, tx_carrier.
func parseStats(b []byte) (c Counters) {
	if len(b) < 18*8 {
		return c
	}
	at := func(i int) uint64 { return native.Uint64(b[i*8:]) }
	return Counters{RxErrors: at(4), TxErrors: at(5), RxDropped: at(6), TxDropped: at(7), TxCarrier: at(17)}
}

// same says whether two wanted links are equal.
func (l Link) same(o Link) bool {
	if (l.Vxlan == nil) != (o.Vxlan == nil) || l.Vxlan != nil && *l.Vxlan != *o.Vxlan {
		return false
	}
	return l.Name == o.Name && l.MTU == o.MTU && l.MAC == o.MAC
}

// syncLinks makes the wanted devices exist as described and removes Owned ones that nobody wants. It returns
// all devices as they are afterwards.
func (p *pass) syncLinks() ([]link, error) {
	links, err := dumpLinks(p.h.rt)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list links: %w", err)
	}
	byName := map[string]link{}
	for _, l := range links {
		byName[l.name] = l
	}
	var errs []error
	changed := false
	// Strangers first: a leftover device with our VNI and port would keep the new one from being made.
	for _, l := range links {
		if Owned(l.name) && !p.ours[l.name] {
			_, retired := p.before.links[l.name]
			errs = append(errs, p.removeLink(l, !p.first && !retired, "not wanted"))
			changed = true
		}
	}
	for _, want := range p.w.Links {
		have, exists := byName[want.Name]
		did, err := p.syncLink(want, have, exists)
		if err != nil {
			errs = append(errs, fmt.Errorf("hostnet: link %s: %w%s", want.Name, err, hint(err)))
		} else {
			p.now.links[want.Name] = want
		}
		changed = changed || did
	}
	if changed {
		if links, err = dumpLinks(p.h.rt); err != nil {
			errs = append(errs, fmt.Errorf("hostnet: list links: %w", err))
		}
	}
	return links, errors.Join(errs...)
}

func (p *pass) removeLink(l link, repair bool, reason string) error {
	p.changed("removed", l.name, repair, reason)
	if err := p.h.rt.do1(deleteLink(l.index)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("hostnet: remove link %s: %w%s", l.name, err, hint(err))
	}
	return nil
}

// syncLink corrects one device, or makes it (anew). It says whether it changed anything.
func (p *pass) syncLink(want Link, have link, exists bool) (bool, error) {
	if !strings.HasPrefix(want.Name, LinkPrefix) {
		return false, fmt.Errorf("not ours: its name does not start with %s", LinkPrefix)
	}
	// A device that was in force just so and no longer is: somebody else's doing.
	before, known := p.before.links[want.Name]
	repair := known && before.same(want)
	if want.Vxlan == nil {
		if !exists {
			return false, errors.New("does not exist")
		}
		return p.adjustLink(want, have, repair)
	}
	reason := "it was missing"
	if exists {
		if have.kind == "vxlan" && have.vxlan == want.Vxlan.state() {
			return p.adjustLink(want, have, repair)
		}
		reason = "it had other attributes"
		if err := p.h.rt.do1(deleteLink(have.index)); err != nil && !errors.Is(err, unix.ENODEV) {
			return true, fmt.Errorf("remove, to make it anew: %w", err)
		}
	}
	p.anew[want.Name] = !repair
	p.changed("made", want.Name, repair, reason)
	if err := p.h.rt.do1(want.create()); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return true, fmt.Errorf("make vxlan %d port %d: %w: another device has this VNI and port",
				want.Vxlan.VNI, want.Vxlan.Port, err)
		}
		return true, fmt.Errorf("make vxlan: %w", err)
	}
	made, err := p.h.linkByName(want.Name)
	if err != nil {
		return true, err
	}
	_, err = p.adjustLink(want, made, false)
	return true, err
}

// adjustLink corrects what can be corrected while a device carries traffic.
func (p *pass) adjustLink(want Link, have link, repair bool) (bool, error) {
	var wrong []string
	var msgs []message
	if want.MTU != 0 && have.mtu != want.MTU {
		wrong = append(wrong, fmt.Sprintf("MTU %d", have.mtu))
	}
	if want.MAC != [6]byte{} && have.mac != want.MAC {
		wrong = append(wrong, "MAC "+macString(have.mac))
	}
	if len(wrong) > 0 {
		msgs = append(msgs, want.set(have.index))
	}
	// A larger MTU may bring IPv6 back to a device, with the machine's own way of making addresses.
	returns := !have.inet6 && have.mtu < minIPv6MTU && want.MTU >= minIPv6MTU && p.h.sysctls.v6 != nil
	if want.Vxlan != nil && (have.inet6 && have.genMode != genModeNone || returns) {
		wrong = append(wrong, "address generation on")
		msgs = append(msgs, noAutoAddr(have.index))
	}
	if !have.up {
		wrong = append(wrong, "down")
		msgs = append(msgs, setUp(have.index))
	}
	if len(wrong) == 0 {
		return false, nil
	}
	if repair {
		p.changed("corrected", want.Name, true, strings.Join(wrong, ", "))
	}
	return true, errors.Join(p.h.rt.do(msgs)...)
}

// linkByName asks for one device.
func (h *Host) linkByName(name string) (link, error) {
	links, err := dumpLinks(h.rt)
	if err != nil {
		return link{}, err
	}
	for _, l := range links {
		if l.name == name {
			return l, nil
		}
	}
	return link{}, fmt.Errorf("device %s does not exist: set node.interface to one that does", name)
}
