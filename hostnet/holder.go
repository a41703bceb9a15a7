package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft/internal/holder"
	"weft/internal/ipnet"
)

// Of linux/netfilter/nf_tables.h.
const tableOwner = 7 // NFTA_TABLE_OWNER: the port number of a netlink socket

// tableHolder names the process that alone may change a table of nftables, "" where anybody may.
func (h *Host) tableHolder(t tableKey) string {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, 0)
	req.Sockets = h.raw
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(t.family), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(t.name)))
	answers, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE)
	const header = 4 // struct nfgenmsg
	if err != nil || len(answers) != 1 || len(answers[0]) < header {
		return ""
	}
	port := attribute(answers[0][header:], tableOwner)
	if len(port) != 4 {
		return ""
	}
	by := holder.Unseen
	_ = h.here(func() error {
		if list, err := holder.Netlink(unix.NETLINK_NETFILTER, binary.BigEndian.Uint32(port)); err == nil && len(list) > 0 {
			by = strings.Join(list, " and ")
		}
		return nil
	})
	return by
}

// tableTrouble is an error of changing a table of nftables, with who has it, where that is another process.
func (h *Host) tableTrouble(t tableKey, err error) error {
	if !errors.Is(err, unix.EPERM) { // nft_table_lookup's answer to who does not own it
		return fmt.Errorf("%w: the kernel may lack what its rules need", err)
	}
	if by := h.tableHolder(t); by != "" && !h.keeper.held[t] {
		return fmt.Errorf("%w: %s owns the table, and it alone may change it: stop that, or have it give its table another name", err, by)
	}
	return fmt.Errorf("%w%s", err, hint(err))
}

// holder says what has the place of an object that could not be added, and what to do about it; "" where that is not known.
func (h *Host) holder(o any, err error) string {
	r, ok := o.(Route)
	if !ok || !errors.Is(err, unix.EEXIST) {
		return ""
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.strict.RouteListFiltered(family(r.Dst.Addr()), &netlink.Route{Table: int(r.Table)}, netlink.RT_FILTER_TABLE)
	})
	at := slices.IndexFunc(routes, func(k netlink.Route) bool {
		return k.Protocol != Protocol && ipnet.Prefix(k.Dst) == r.Dst && uint32(k.Priority) == r.Metric
	})
	if err != nil || at < 0 {
		return ""
	}
	k := routes[at]
	dev := ""
	if l, err := h.rt.LinkByIndex(k.LinkIndex); err == nil {
		dev = l.Attrs().Name
	}
	if k.Gw == nil && k.Via == nil && len(k.MultiPath) == 0 && k.Type == unix.RTN_UNICAST && !Ours(dev) {
		return fmt.Sprintf("%v is this node's own network on %s, which the node needs: give the peer another prefix, or that network other addresses", r.Dst, dev)
	}
	text := fmt.Sprintf("a route of somebody else has its place (%s", routeTypes[k.Type])
	if gw := nextHop(k.Gw, k.Via); gw.IsValid() {
		text += fmt.Sprintf(" via %v", gw)
	}
	if dev != "" {
		text += " dev " + dev
	}
	table := ""
	if r.Table != MainTable {
		table = fmt.Sprintf(" table %d", r.Table)
	}
	return text + fmt.Sprintf(", protocol %v): if the overlay is to have it: ip route del %v metric %d%s", k.Protocol, r.Dst, r.Metric, table)
}
