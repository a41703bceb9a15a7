package hostnet

import (
	"encoding/binary"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// generation returns the number of the last change of nftables, by anybody (NFT_MSG_GETGEN); 0 where it cannot be told.
func (r raw) generation() uint32 {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.Sockets = r
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err != nil || len(answers) == 0 {
		return 0
	}
	id, _ := generationOf(answers[0])
	return id
}

// generationOf reads a message about a change of nftables: its number and the process that made it.
func generationOf(b []byte) (id, pid uint32) {
	const header = 4 // struct nfgenmsg
	if len(b) < header {
		return 0, 0
	}
	attrs, err := parseAttrs(b[header:])
	if err != nil {
		return 0, 0
	}
	for _, a := range attrs {
		switch {
		case a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) >= 4:
			id = binary.BigEndian.Uint32(a.Value)
		case a.Attr.Type == unix.NFTA_GEN_PROC_PID && len(a.Value) >= 4:
			pid = binary.BigEndian.Uint32(a.Value)
		}
	}
	return id, pid
}

// foreignGeneration says whether a notification tells of a change of nftables by another process.
func foreignGeneration(m syscall.NetlinkMessage, self int) bool {
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		return false
	}
	_, pid := generationOf(m.Data)
	return int(pid) != self
}

// firewallShare bounds what others' changes of nftables cost: after a look that took d, the next waits for firewallShare × d.
const firewallShare = 10

// firewallChanged takes note that another process has changed nftables, and calls notify: at once, or when the last look is long
// enough ago.
func (h *Host) firewallChanged(notify func()) {
	h.mu.Lock()
	needed := slices.ContainsFunc(h.owners, func(o *owner) bool { return len(o.want.Tables)+len(o.want.Passage) > 0 })
	wait := firewallShare*h.firewall.took - time.Since(h.firewall.ended)
	h.mu.Unlock()
	switch {
	case !needed || h.firewallNews.Swap(true):
	case wait <= 0:
		notify()
	default:
		time.AfterFunc(wait, notify)
	}
}
