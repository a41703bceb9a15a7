package txloss

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// trackCounts are packets that connection tracking lost in this network namespace since it was made.
type trackCounts struct {
	insertFailed, // another flow had just got the same addresses and ports
	tableFull, // there was no room for a new flow
	earlyDropped uint64 // flows, not packets, that had to make room for new ones
}

// What of linux/netfilter/nfnetlink_conntrack.h is of use here.
const (
	getStatsCPU = 4 // IPCTNL_MSG_CT_GET_STATS_CPU

	statInsertFailed = 9
	statDrop         = 10
	statEarlyDrop    = 11
)

// openTracking opens a socket in the calling thread's namespace; nil where the kernel has no netfilter.
func openTracking() (*nl.SocketHandle, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("txloss: open netlink: %w", err)
	}
	return &nl.SocketHandle{Socket: s}, nil
}

// countFlows asks ctnetlink. A kernel without connection tracking loses nothing there.
func (w *Watch) countFlows() (c trackCounts, err error) {
	if w.ct == nil {
		return c, nil
	}
	const kind = unix.NFNL_SUBSYS_CTNETLINK<<8 | getStatsCPU
	request := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: w.ct}
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	messages, err := request.Execute(unix.NETLINK_NETFILTER, kind)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("txloss: ask connection tracking: %w", err)
	}
	for _, m := range messages { // one for each processor
		const header = 4 // struct nfgenmsg
		if len(m) < header {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[header:])
		if err != nil {
			return c, fmt.Errorf("txloss: connection tracking: %w", err)
		}
		for _, a := range attrs {
			if len(a.Value) < 4 {
				continue
			}
			n := uint64(binary.BigEndian.Uint32(a.Value))
			switch a.Attr.Type & nl.NLA_TYPE_MASK {
			case statInsertFailed:
				c.insertFailed += n
			case statDrop:
				c.tableFull += n
			case statEarlyDrop:
				c.earlyDropped += n
			}
		}
	}
	return c, nil
}
