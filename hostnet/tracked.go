package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
const (
	ctNew, ctGet, ctGetStats = 0, 1, 5 // IPCTNL_MSG_CT_…

	ctaOrig, ctaReply, ctaStatus, ctaProto, ctaHelp, ctaTimeout, ctaMark = 1, 2, 3, 4, 5, 7, 8
	ctaTupleIP, ctaTupleProto                                            = 1, 2
	ctaProtoNum, ctaProtoSrc, ctaProtoDst                                = 1, 2, 3
	ctaProtoTCP, ctaTCPState, ctaTCPFlagsOrig, ctaTCPFlagsReply          = 1, 1, 4, 5
	ctaStatsEntries                                                      = 1
	tcpLiberal                                                           = 8 // IP_CT_TCP_FLAG_BE_LIBERAL

	ipsSeenReply, ipsConfirmed                                    = 1 << 1, 1 << 3
	ipsSrcNAT, ipsDstNAT, ipsSeqAdjust                            = 1 << 4, 1 << 5, 1 << 6
	ipsDying, ipsFixedTimeout, ipsNATClash, ipsHelper, ipsOffload = 1 << 9, 1 << 10, 1 << 12, 1 << 13, 1 << 14
)

// Tuple is one direction of a connection of TCP or UDP.
type Tuple struct {
	Protocol uint8
	Src, Dst netip.AddrPort
}

// Reverse is the other direction.
func (t Tuple) Reverse() Tuple { return Tuple{t.Protocol, t.Dst, t.Src} }

// Tracked is what connection tracking knows of one connection.
type Tracked struct {
	Began   Tuple         // in the direction of its first packet
	Timeout time.Duration // until it is forgotten, if nothing is heard of it
	Mark    uint32

	plain string // why it is none that goes both ways as it is, "" = it is one
}

// Plain says why a connection is not one that is established, goes both ways, and is neither translated nor looked into; "" = it is.
func (t *Tracked) Plain() string { return t.plain }

// Tracked asks connection tracking for a connection, in either direction; nil where it does not know it.
func (h *Host) Tracked(t Tuple) (*Tracked, error) {
	req := h.ctRequest(ctGet, unix.NLM_F_ACK, t) // the answer says that more follows, and this is it
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) || err == nil && len(answers) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("hostnet: ask for the flow %v: %w%s", t, err, hint(err))
	}
	return tracked(answers[0])
}

// Tracks says whether connection tracking knows any connection in this namespace: without a rule that asks for it, it knows none.
func (h *Host) Tracks() (bool, error) {
	if h.ct == nil {
		return false, nil
	}
	req := h.raw.request(unix.NFNL_SUBSYS_CTNETLINK<<8|ctGetStats, unix.NLM_F_ACK, &nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(answers) == 0 {
		return true, fmt.Errorf("hostnet: ask how many flows there are: %w%s", err, hint(err))
	}
	attrs, err := ctAttrs(answers[0])
	if err != nil {
		return true, err
	}
	for _, a := range attrs {
		if a.kind == ctaStatsEntries && len(a.value) >= 4 {
			return binary.BigEndian.Uint32(a.value) > 0, nil
		}
	}
	return true, errors.New("hostnet: the kernel does not say how many flows there are")
}

// KeepTracked has connection tracking remember a connection for that long from now, and take packets of any sequence number of TCP for its
// own: some of them pass it by, and those that it sees later must not be out of its windows. Nothing else of the connection changes.
// An error that is ENOENT says that it is not known any more.
func (h *Host) KeepTracked(t Tuple, timeout time.Duration) error {
	req := h.ctRequest(ctNew, unix.NLM_F_ACK, t)
	req.AddData(nl.NewRtAttr(ctaTimeout, be32(uint32(timeout/time.Second))))
	if t.Protocol == unix.IPPROTO_TCP {
		info := nl.NewRtAttr(ctaProto|unix.NLA_F_NESTED, nil)
		tcp := info.AddRtAttr(ctaProtoTCP|unix.NLA_F_NESTED, nil)
		for _, kind := range []int{ctaTCPFlagsOrig, ctaTCPFlagsReply} {
			tcp.AddRtAttr(kind, []byte{tcpLiberal, tcpLiberal}) // value, mask
		}
		req.AddData(info)
	}
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return fmt.Errorf("hostnet: keep the flow %v: %w%s", t, err, hint(err))
	}
	return nil
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// ctRequest is a request about one connection.
func (h *Host) ctRequest(kind, flags int, t Tuple) *nl.NetlinkRequest {
	family, src, dst := uint8(unix.AF_INET), 1, 2 // CTA_IP_V4_SRC, CTA_IP_V4_DST
	if t.Src.Addr().Is6() {
		family, src, dst = unix.AF_INET6, 3, 4
	}
	req := h.raw.request(unix.NFNL_SUBSYS_CTNETLINK<<8|kind, flags, &nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	tuple := nl.NewRtAttr(ctaOrig|unix.NLA_F_NESTED, nil)
	ip := tuple.AddRtAttr(ctaTupleIP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(src, t.Src.Addr().AsSlice())
	ip.AddRtAttr(dst, t.Dst.Addr().AsSlice())
	proto := tuple.AddRtAttr(ctaTupleProto|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(ctaProtoNum, []byte{t.Protocol})
	proto.AddRtAttr(ctaProtoSrc, binary.BigEndian.AppendUint16(nil, t.Src.Port()))
	proto.AddRtAttr(ctaProtoDst, binary.BigEndian.AppendUint16(nil, t.Dst.Port()))
	req.AddData(tuple)
	return req
}

type ctAttr struct {
	kind  uint16
	value []byte
}

// ctAttrs reads the attributes of a message behind its struct nfgenmsg.
func ctAttrs(b []byte) ([]ctAttr, error) {
	if len(b) < nl.SizeofNfgenmsg {
		return nil, errors.New("hostnet: a message of connection tracking is too short")
	}
	return nested(b[nl.SizeofNfgenmsg:])
}

func nested(b []byte) (list []ctAttr, err error) {
	attrs, err := parseAttrs(b)
	if err != nil {
		return nil, fmt.Errorf("hostnet: read a message of connection tracking: %w", err)
	}
	for _, a := range attrs {
		list = append(list, ctAttr{a.Attr.Type & nl.NLA_TYPE_MASK, a.Value})
	}
	return list, nil
}

// tracked reads the kernel's word of one connection.
func tracked(b []byte) (*Tracked, error) {
	attrs, err := ctAttrs(b)
	if err != nil {
		return nil, err
	}
	var t Tracked
	var reply Tuple
	status, state, helped := uint32(0), uint8(established), false
	for _, a := range attrs {
		switch {
		case a.kind == ctaOrig:
			t.Began, err = tupleOf(a.value)
		case a.kind == ctaReply:
			reply, err = tupleOf(a.value)
		case a.kind == ctaStatus && len(a.value) >= 4:
			status = binary.BigEndian.Uint32(a.value)
		case a.kind == ctaTimeout && len(a.value) >= 4:
			t.Timeout = time.Duration(binary.BigEndian.Uint32(a.value)) * time.Second
		case a.kind == ctaMark && len(a.value) >= 4:
			t.Mark = binary.BigEndian.Uint32(a.value)
		case a.kind == ctaHelp:
			helped = true
		case a.kind == ctaProto:
			var s uint8
			if s, err = tcpState(a.value); s != 0 {
				state = s
			}
		}
		if err != nil {
			return nil, err
		}
	}
	switch {
	case reply != t.Began.Reverse() || status&(ipsSrcNAT|ipsDstNAT) != 0:
		t.plain = "its addresses or ports are translated"
	case status&ipsConfirmed == 0 || status&ipsDying != 0:
		t.plain = "connection tracking has not confirmed it"
	case status&ipsSeenReply == 0:
		t.plain = "connection tracking has seen one direction only"
	case helped || status&(ipsHelper|ipsSeqAdjust) != 0:
		t.plain = "a helper of connection tracking reads it"
	case status&(ipsFixedTimeout|ipsOffload) != 0:
		t.plain = "somebody else has taken it from connection tracking"
	case state != established:
		t.plain = "the TCP connection is not established"
	}
	return &t, nil
}

// tcpState reads CTA_PROTOINFO; 0 where it is not about TCP.
func tcpState(b []byte) (uint8, error) {
	infos, err := nested(b)
	if err != nil || len(infos) == 0 || infos[0].kind != ctaProtoTCP {
		return 0, err
	}
	attrs, err := nested(infos[0].value)
	for _, a := range attrs {
		if a.kind == ctaTCPState && len(a.value) >= 1 {
			return a.value[0], nil
		}
	}
	return 0, err
}

// tupleOf reads CTA_TUPLE_ORIG or CTA_TUPLE_REPLY.
func tupleOf(b []byte) (t Tuple, err error) {
	parts, err := nested(b)
	if err != nil {
		return t, err
	}
	var src, dst netip.Addr
	var sport, dport uint16
	for _, part := range parts {
		attrs, err := nested(part.value)
		if err != nil {
			return t, err
		}
		for _, a := range attrs {
			switch {
			case part.kind == ctaTupleIP && (a.kind == 1 || a.kind == 3):
				src, _ = netip.AddrFromSlice(a.value)
			case part.kind == ctaTupleIP && (a.kind == 2 || a.kind == 4):
				dst, _ = netip.AddrFromSlice(a.value)
			case part.kind == ctaTupleProto && a.kind == ctaProtoNum && len(a.value) >= 1:
				t.Protocol = a.value[0]
			case part.kind == ctaTupleProto && a.kind == ctaProtoSrc && len(a.value) >= 2:
				sport = binary.BigEndian.Uint16(a.value)
			case part.kind == ctaTupleProto && a.kind == ctaProtoDst && len(a.value) >= 2:
				dport = binary.BigEndian.Uint16(a.value)
			}
		}
	}
	t.Src, t.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return t, nil
}

// rumour is news of the kernel by which packets may take another way than before, or none.
type rumour struct {
	protocol int
	groups   []uint
}

// rumours are all that tell: links, addresses, routes, rules, next hops, settings of forwarding, queueing disciplines, nftables.
var rumours = []rumour{
	{unix.NETLINK_ROUTE, []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_TC, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, groupNextHop}},
	{unix.NETLINK_NETFILTER, []uint{unix.NFNLGRP_NFTABLES}},
}

// Hearsay calls heard for everything in this namespace by which packets may take another way than before, or none, whoever did it: changes
// of links, addresses, routes, rules, next hops, forwarding, queueing disciplines and nftables; also where some may have been missed. It
// returns when it listens. Until stop is called, that is; broken gets an error where one of its sockets breaks.
func (h *Host) Hearsay(heard func(links bool), broken func(error)) (stop func(), err error) {
	var sockets []*nl.NetlinkSocket
	stop = func() {
		for _, s := range sockets {
			s.Close()
		}
	}
	for _, r := range rumours {
		s, err := h.subscribe(r.protocol, r.groups...)
		if errors.Is(err, unix.EPROTONOSUPPORT) && r.protocol == unix.NETLINK_NETFILTER {
			continue // no rules
		}
		if err != nil {
			stop()
			return nil, fmt.Errorf("hostnet: subscribe to kernel changes: %w", err)
		}
		_ = s.SetReceiveBufferSize(1<<20, false)
		sockets = append(sockets, s)
	}
	for _, s := range sockets {
		go func() {
			for {
				news, from, err := s.Receive()
				switch {
				case errors.Is(err, unix.ENOBUFS): // some were dropped
					heard(true)
				case err != nil:
					broken(err)
					return
				case from.Pid == nl.PidKernel && len(news) > 0:
					heard(len(news) > 0 && aboutLinks(news))
				}
			}
		}()
	}
	return stop, nil
}

// aboutLinks says whether devices, or what leads to them, may be others.
func aboutLinks(news []syscall.NetlinkMessage) bool {
	for _, m := range news {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
			return true
		}
	}
	return false
}

// SilentRules names rules that can change without a word of the kernel, "" = there are none: of iptables-legacy, in the calling thread's
// namespace, and sets of ipset.
func (h *Host) SilentRules() string {
	for _, f := range []string{"ip_tables_names", "ip6_tables_names"} {
		data, err := os.ReadFile("/proc/thread-self/net/" + f)
		if names := strings.Fields(string(data)); err == nil && len(names) > 0 {
			return fmt.Sprintf("%s of this namespace has tables of iptables-legacy (%s), whose rules change without a word: use iptables-nft, or nftables", f, strings.Join(names, ", "))
		}
	}
	if _, err := os.Stat("/sys/module/ip_set"); err != nil || h.ct == nil { // to ask would load it
		return ""
	}
	sets, err := h.ct.IpsetListAll()
	if err == nil && len(sets) > 0 {
		return fmt.Sprintf("there are sets of ipset (%s), which change without a word: use sets of nftables", sets[0].SetName)
	}
	return ""
}
