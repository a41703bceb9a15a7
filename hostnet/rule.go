package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Rule is a policy routing rule (`ip rule`) of protocol 87: packets that it matches are looked up in Table.
type Rule struct {
	Priority uint32       // below 32766, what the main table has
	V6       bool         // of IPv6
	From, To netip.Prefix // zero = any
	Iif      string       // the device they came in by; "" = any
	Mark     uint32       // of the packet, under Mask; both 0 = any
	Mask     uint32
	Table    uint32

	odd bool // has attributes that weft never sets
}

func (r Rule) key() Rule      { return r } // the kernel tells rules apart by all they have
func (r Rule) device() string { return "" }
func (r Rule) shared() bool   { return false }

func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "rule %d", r.Priority)
	if r.V6 {
		b.WriteString(" inet6")
	}
	if r.From.IsValid() {
		fmt.Fprintf(&b, " from %s", r.From)
	}
	if r.To.IsValid() {
		fmt.Fprintf(&b, " to %s", r.To)
	}
	if r.Iif != "" {
		fmt.Fprintf(&b, " iif %s", r.Iif)
	}
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	fmt.Fprintf(&b, " lookup %d", r.Table)
	return b.String()
}

func (r Rule) kernel() *netlink.Rule {
	k := netlink.NewRule()
	k.Priority, k.Table, k.IifName, k.Protocol, k.Family = int(r.Priority), int(r.Table), r.Iif, Protocol, netlink.FAMILY_V4
	if r.V6 {
		k.Family = netlink.FAMILY_V6
	}
	if r.From.IsValid() {
		k.Src = ipnet.Of(r.From)
	}
	if r.To.IsValid() {
		k.Dst = ipnet.Of(r.To)
	}
	if r.Mask != 0 {
		k.Mark, k.Mask = r.Mark, &r.Mask
	}
	return k
}

func (r Rule) add(rt *handle, _ int, _ bool) error { return rt.RuleAdd(r.kernel()) }
func (r Rule) remove(rt *handle, _ int) error      { return rt.RuleDel(r.kernel()) }
func (r Rule) evict(rt *handle, _ int) error       { return r.remove(rt, 0) }

// dumpRules returns the rules of protocol 87.
func dumpRules(rt *handle) (list []Rule, err error) {
	table, err := dumpBoth(func(fam int) ([]netlink.Rule, error) {
		rules, err := rt.RuleList(fam)
		for i := range rules {
			rules[i].Family = fam // the library leaves it to the caller
		}
		return rules, err
	})
	for _, k := range table {
		if k.Protocol == Protocol {
			list = append(list, ruleFrom(k))
		}
	}
	return list, err
}

func ruleFrom(k netlink.Rule) Rule {
	r := Rule{Priority: uint32(max(k.Priority, 0)), V6: k.Family == netlink.FAMILY_V6, From: ipnet.Prefix(k.Src), To: ipnet.Prefix(k.Dst), Iif: k.IifName,
		Mark: k.Mark, Table: uint32(k.Table)}
	if k.Mask != nil {
		r.Mask = *k.Mask
	}
	r.odd = k.Invert || k.OifName != "" || k.Goto >= 0 || k.Dport != nil || k.Sport != nil || k.UIDRange != nil || k.IPProto != 0 ||
		k.SuppressPrefixlen >= 0 || k.SuppressIfgroup >= 0 || k.Tos != 0 || k.Type != 0 && k.Type != unix.RTN_UNICAST
	return r
}

// rules are a Want's rules as the kernel has them, its guards aside.
func (w *Want) rules() []Rule {
	list := make([]Rule, 0, len(w.Rules))
	for _, r := range w.Rules {
		list = append(list, r.normal())
	}
	return list
}

// detours returns the rules of somebody else, of one address family, that look packets up in a table of their own before the main
// one, where weft's routes and guards are; and the priority of the guards: next behind the local table's. Without a rule for
// that first of all there can be none, for packets to the node's own addresses would be taken past it.
func detours(rt *handle, v6 bool) (list []Rule, guard uint32, err error) {
	fam := netlink.FAMILY_V4
	if v6 {
		fam = netlink.FAMILY_V6
	}
	rules, err := dump(func() ([]netlink.Rule, error) { return rt.RuleList(fam) })
	if err != nil {
		return nil, 0, fmt.Errorf("hostnet: list rules: %w", err)
	}
	local := -1
	for _, k := range rules {
		if k.Table == unix.RT_TABLE_LOCAL && (local < 0 || k.Priority < local) {
			local = max(k.Priority, 0)
		}
		switch k.Table {
		case unix.RT_TABLE_UNSPEC, unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT: // the first: it refuses, goes to another rule, or is a VRF's
		default:
			if k.Protocol != Protocol {
				k.Family = fam
				list = append(list, ruleFrom(k))
			}
		}
	}
	if local >= 0 {
		guard = uint32(local) + 1
	}
	return list, guard, nil
}

// guardRules are the rules that lead packets to the network's prefixes of one address family into the main table, where weft's routes and
// guards are, before somebody else's rule leads them elsewhere: where there is such a rule, and only then, for the kernel looks up faster
// without any.
func (h *Host) guardRules(network []netip.Prefix, v6 bool) (list []Rule, err error) {
	if !slices.ContainsFunc(network, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 }) {
		return nil, nil
	}
	others, priority, err := h.detours(h.rt, v6)
	if err != nil && !absentFamily(err) {
		return nil, err
	}
	for _, p := range network {
		if p.Addr().Is6() == v6 && len(others) > 0 && priority > 0 {
			list = append(list, guardRule(priority, p))
		}
	}
	return list, nil
}

func guardRule(priority uint32, to netip.Prefix) Rule {
	return Rule{Priority: priority, V6: to.Addr().Is6(), To: to, Table: MainTable}.normal()
}

func absentFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// Detours returns, in words, the rules of others that packets to the network may follow before they come to the main table, where
// weft's routes and the guard against packets in clear are; and those that no more do because of a rule of weft's.
func (h *Host) Detours(network []netip.Prefix) (open, guarded []string, err error) {
	ours, err := dumpRules(h.rt)
	if err != nil {
		return nil, nil, fmt.Errorf("hostnet: list rules: %w", err)
	}
	for _, v6 := range []bool{false, true} {
		own := slices.DeleteFunc(slices.Clone(network), func(p netip.Prefix) bool { return p.Addr().Is6() != v6 })
		if len(own) == 0 {
			continue
		}
		others, _, err := detours(h.rt, v6)
		if absentFamily(err) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, d := range others {
			if d.To.IsValid() && !slices.ContainsFunc(own, d.To.Overlaps) {
				continue
			}
			safe := !slices.ContainsFunc(own, func(p netip.Prefix) bool {
				return !slices.ContainsFunc(ours, func(r Rule) bool { return r.Table == MainTable && r.To == p && r.Priority < d.Priority })
			})
			if safe {
				guarded = append(guarded, d.String())
			} else {
				open = append(open, d.String())
			}
		}
	}
	return open, guarded, nil
}

// normal masks what the kernel masks.
func (r Rule) normal() Rule {
	if r.From.IsValid() {
		r.From = r.From.Masked()
	}
	if r.To.IsValid() {
		r.To = r.To.Masked()
	}
	return r
}

// ruleMessage reads a notification about a rule, and says whether it is of protocol 87.
func ruleMessage(b []byte) (r Rule, mine bool, err error) {
	if len(b) < unix.SizeofRtMsg {
		return r, false, fmt.Errorf("read a rule: %d bytes", len(b))
	}
	msg := nl.DeserializeRtMsg(b)
	attrs, err := parseAttrs(b[msg.Len():])
	if err != nil {
		return r, false, fmt.Errorf("read a rule: %w", err)
	}
	r.V6, r.Table = msg.Family == unix.AF_INET6, uint32(msg.Table)
	const invert = 2 // FIB_RULE_INVERT
	r.odd = msg.Type != nl.FR_ACT_TO_TBL || msg.Tos != 0 || msg.Flags&invert != 0
	for _, a := range attrs {
		var number uint32
		if len(a.Value) >= 4 {
			number = binary.NativeEndian.Uint32(a.Value)
		}
		switch a.Attr.Type {
		case nl.FRA_PRIORITY:
			r.Priority = number
		case nl.FRA_TABLE:
			r.Table = number
		case nl.FRA_FWMARK:
			r.Mark = number
		case nl.FRA_FWMASK:
			r.Mask = number
		case nl.FRA_IIFNAME:
			r.Iif = strings.TrimRight(string(a.Value), "\x00")
		case nl.FRA_SRC:
			r.From = netip.PrefixFrom(ipnet.Addr(a.Value), int(msg.Src_len))
		case nl.FRA_DST:
			r.To = netip.PrefixFrom(ipnet.Addr(a.Value), int(msg.Dst_len))
		case nl.FRA_PROTOCOL:
			mine = len(a.Value) == 1 && a.Value[0] == Protocol
		case nl.FRA_SUPPRESS_PREFIXLEN:
			r.odd = r.odd || number != 1<<32-1
		default:
			r.odd = true
		}
	}
	return r, mine, nil
}
