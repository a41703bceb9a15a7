package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// raw sends the requests that netlink.Handle has no words for, put together with the library's own parts.
type raw map[int]*nl.SocketHandle

// openRaw opens sockets in the namespace of the calling thread.
func openRaw() (raw, error) {
	r := raw{}
	for _, protocol := range []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER} {
		s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), protocol)
		if protocol == unix.NETLINK_NETFILTER && errors.Is(err, unix.EPROTONOSUPPORT) {
			continue // the kernel has no netfilter
		}
		if err != nil {
			r.close()
			return nil, err
		}
		r[protocol] = &nl.SocketHandle{Socket: s}
		timeout := unix.NsecToTimeval(int64(answerTimeout))
		if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout), s.SetExtAck(true)); err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

func (r raw) close() {
	for _, s := range r {
		s.Close()
	}
}

func (r raw) request(kind, flags int, family nl.NetlinkRequestData) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = r
	req.AddData(family)
	return req
}

// addVxlan makes a device, down and with the kernel's choice of MTU and MAC. netlink.LinkAdd cannot: it sends the
// attribute for outer checksums only to turn them on, and without it they are on as well.
//
// into is the namespace that the device is in, where that is not the one whose addresses its packets have; -1 = it is.
func (r raw) addVxlan(name string, v Vxlan, into int) error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(v.VNI))
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port))
	local := nl.IFLA_VXLAN_LOCAL
	if v.Local.Is6() {
		local = nl.IFLA_VXLAN_LOCAL6
	}
	data.AddRtAttr(local, v.Local.AsSlice())
	flag := map[bool][]byte{false: {0}, true: {1}}
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, flag[false])
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_CSUM, flag[v.Checksum])
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, flag[v.zero6()])
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, flag[v.zero6()])
	if v.Local.Is4() {
		data.AddRtAttr(iflaVxlanDF, []byte{vxlanDFSet})
	}
	req := r.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if into >= 0 { // the device's socket stays in the namespace of the request (vxlan_newlink)
		req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(into))))
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Of linux/if_link.h, since Linux 4.20: the library does not have them.
const (
	iflaVxlanDF = 29
	vxlanDFSet  = 1 // VXLAN_DF_SET: in every outer IPv4 header (docs/wire.md)
)

// fragments says whether a VXLAN device over IPv4 sends without DF. Where the kernel does not tell, there is nothing to be done.
func (r raw) fragments(index int) bool {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	answers, err := r.request(unix.RTM_GETLINK, 0, msg).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil || len(answers) != 1 || len(answers[0]) < unix.SizeofIfInfomsg {
		return false
	}
	data := answers[0][unix.SizeofIfInfomsg:]
	for _, kind := range []uint16{unix.IFLA_LINKINFO, nl.IFLA_INFO_DATA} {
		data = attribute(data, kind)
	}
	df := attribute(data, iflaVxlanDF)
	return attribute(data, nl.IFLA_VXLAN_LOCAL) != nil && len(df) == 1 && df[0] != vxlanDFSet
}

// attribute finds one among netlink attributes; nil = it is not there.
func attribute(data []byte, kind uint16) []byte {
	attrs, err := nl.ParseRouteAttr(data)
	if err != nil {
		return nil
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == kind {
			return a.Value
		}
	}
	return nil
}

// fdbRow is one forwarding entry of any device.
type fdbRow struct {
	netlink.Neigh
	diverted bool // to another UDP port, through another device, or to a group of next hops
}

// fdb lists all devices' forwarding entries. netlink.NeighList does so too, but leaves out where else than to its
// endpoint an entry sends: one with a wrong port would pass for right.
func (r raw) fdb() (rows []fdbRow, err error) {
	req := r.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, &netlink.Ndmsg{Family: unix.AF_BRIDGE})
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, err
	}
	for _, b := range answers {
		row, err := fdbRowFrom(b)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// fdbRowFrom reads a message about a forwarding entry.
func fdbRowFrom(b []byte) (fdbRow, error) {
	n, err := netlink.NeighDeserialize(b)
	if err != nil {
		return fdbRow{}, fmt.Errorf("read a forwarding entry: %w", err)
	}
	attrs, err := nl.ParseRouteAttr(b[(&netlink.Ndmsg{}).Len():])
	if err != nil {
		return fdbRow{}, fmt.Errorf("read a forwarding entry: %w", err)
	}
	row := fdbRow{Neigh: *n}
	for _, a := range attrs {
		switch a.Attr.Type {
		case netlink.NDA_PORT, netlink.NDA_IFINDEX, netlink.NDA_NH_ID:
			row.diverted = true
		}
	}
	return row, nil
}

// parseAttrs reads netlink attributes, as the library does, which slices past a last one that is not padded to four bytes. Values are
// of b, or of a copy of it.
func parseAttrs(b []byte) ([]syscall.NetlinkRouteAttr, error) {
	if short := -len(b) & (unix.NLA_ALIGNTO - 1); short > 0 {
		b = append(b[:len(b):len(b)], make([]byte, short)...)
	}
	return nl.ParseRouteAttr(b)
}
