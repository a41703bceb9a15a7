package hostnet

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Masqueraded says which flows a table of ours gives the node's address. Connection tracking decides about a flow once, at its first
// packet: one that began while the table was not in force would leave as it is for as long as it lives.
type Masqueraded struct {
	From   []netip.Prefix // whose flows
	Except []netip.Prefix // to these none; nor to the node's own addresses
}

func among(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// established is TCP_CONNTRACK_ESTABLISHED (linux/netfilter/nf_conntrack_tcp.h). The states before it are those of a beginning.
const established = 3

// missed says whether a flow began without the table. Where it ends up is told by the other direction's source, behind any DNAT. A TCP
// connection that stands has found a way without, and would break.
func (m *Masqueraded) missed(f *netlink.ConntrackFlow, own map[netip.Addr]bool) bool {
	from, to, back := ipnet.Addr(f.Forward.SrcIP).Unmap(), ipnet.Addr(f.Reverse.SrcIP).Unmap(), ipnet.Addr(f.Reverse.DstIP).Unmap()
	if from != back || !among(m.From, from) || among(m.Except, to) || own[to] {
		return false
	}
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return !ok || tcp.State < established
}

// missedFlows is Masqueraded as the library's filter.
type missedFlows struct {
	*Masqueraded
	own map[netip.Addr]bool
}

func (m missedFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool { return m.missed(f, m.own) }

// forgetMissed removes what connection tracking knows of flows that began without t, which has just been put in force: their next
// packets begin anew. What cannot be removed is told of; the table is in force all the same.
func (h *Host) forgetMissed(t *Table) {
	if t.Masquerades == nil || h.ct == nil {
		return
	}
	m := missedFlows{t.Masquerades, map[netip.Addr]bool{}}
	addrs, err := dumpAddrs(h.rt)
	for _, a := range addrs {
		m.own[ipnet.Addr(a.IP)] = true
	}
	removed := uint(0)
	for _, fam := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, e := h.ct.ConntrackDeleteFilters(netlink.ConntrackTable, fam, m)
		removed, err = removed+n, errors.Join(err, e)
	}
	if err != nil {
		h.log.Warn("flows that began without masquerading may go on so: see `conntrack -L`", zap.Error(err))
	}
	if removed > 0 {
		h.log.Info("forgot flows that began without masquerading", zap.Uint("flows", removed))
	}
}
