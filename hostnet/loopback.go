package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// loopback is the device for addresses of a node that has no device of ours to hold them.
const loopback = "lo"

// ifaProto is IFA_PROTO (linux/if_addr.h): who made an address, as rtm_protocol for routes; `ip address` shows "proto 0x57".
// The kernel keeps it since Linux 5.18 and ignores it before.
const ifaProto = 11

// syncOwn puts the addresses of Want.Own on the loopback device, and returns those there that are ours by their protocol
// and no longer wanted. Whatever else the device holds is left alone.
func (p *pass) syncOwn() (strays []netip.Addr) {
	p.now.own = map[netip.Addr]bool{}
	have, err := p.h.raw.hostAddrs(p.index[loopback])
	if err != nil {
		p.fail(fmt.Errorf("hostnet: list addresses of %s: %w", loopback, err))
		return nil
	}
	for _, o := range p.h.owners {
		for _, a := range o.want.Own {
			p.now.own[a] = true
			if _, there := have[a]; there {
				continue // with another mark too: then somebody else keeps it there
			}
			err := p.h.raw.addHostAddr(p.index[loopback], a)
			p.h.wrote = p.h.wrote || err == nil
			if err != nil && !errors.Is(err, unix.EEXIST) {
				o.fail(fmt.Errorf("hostnet: add address %s dev %s: %w%s", a, loopback, err, hint(err)))
				delete(p.now.own, a)
			} else if p.before.own[a] {
				p.repaired("put back", own{a}, "it was missing")
			}
		}
	}
	var works []Addr
	for a := range p.now.own {
		works = append(works, Addr{Dev: loopback, Prefix: ipnet.Host(a)})
	}
	p.awaitLocal(slices.Values(works))
	for a, ours := range have {
		if ours && !p.now.own[a] && (p.settled || p.before.own[a]) {
			strays = append(strays, a)
		}
	}
	return strays
}

// removeOwn takes addresses off the loopback device.
func (h *Host) removeOwn(index int, list []netip.Addr) (removed []string, err error) {
	var errs []error
	for _, a := range list {
		err := h.rt.AddrDel(nil, &netlink.Addr{IPNet: ipnet.Of(ipnet.Host(a)), LinkIndex: index})
		if err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove address %s dev %s: %w%s", a, loopback, err, hint(err)))
			continue
		}
		removed = append(removed, own{a}.String())
	}
	return removed, errors.Join(errs...)
}

type own struct{ netip.Addr }

func (o own) String() string { return fmt.Sprintf("address %s dev %s", o.Addr, loopback) }

// hostAddrs lists a device's addresses of host length, and whether they are ours. netlink.AddrList leaves that out.
func (r raw) hostAddrs(index int) (ours map[netip.Addr]bool, err error) {
	ours = map[netip.Addr]bool{}
	answers, err := dump(func() ([][]byte, error) {
		return r.request(unix.RTM_GETADDR, unix.NLM_F_DUMP, nl.NewIfInfomsg(unix.AF_UNSPEC)).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	})
	if err != nil {
		return nil, err
	}
	for _, b := range answers {
		msg := nl.DeserializeIfAddrmsg(b)
		attrs, err := parseAttrs(b[msg.Len():])
		if err != nil {
			return nil, fmt.Errorf("read an address: %w", err)
		}
		if int(msg.Index) != index {
			continue
		}
		var ip netip.Addr
		mark := false
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_ADDRESS:
				ip = ipnet.Addr(a.Value)
			case ifaProto:
				mark = len(a.Value) > 0 && a.Value[0] == Protocol
			}
		}
		if ip.IsValid() && int(msg.Prefixlen) == ip.BitLen() {
			ours[ip] = mark
		}
	}
	return ours, nil
}

// addHostAddr adds an address of host length with our mark. netlink.AddrAdd has no word for that.
func (r raw) addHostAddr(index int, a netip.Addr) error {
	msg := nl.NewIfAddrmsg(family(a))
	msg.Index, msg.Prefixlen, msg.Scope = uint32(index), uint8(a.BitLen()), unix.RT_SCOPE_UNIVERSE
	req := r.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	req.AddData(nl.NewRtAttr(ifaProto, []byte{Protocol}))
	if a.Is6() {
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags6)))
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
