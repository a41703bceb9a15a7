package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink_log.h.
const (
	logPacket, logConfig                = 0, 1        // NFULNL_MSG_…
	logCommand, logMode, logQueue       = 1, 2, 5     // NFULA_CFG_…
	logHeader, logIn, logOut            = 1, 4, 5     // NFULA_…
	logPayload, logPrefix               = 9, 10       // NFULA_…
	logBind, logCopyPacket, logMaxBytes = 1, 2, 65535 // NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET
)

// Logs are packets that rules of nftables log to a group of nfnetlink_log. One process of a namespace at a time may listen to a group.
type Logs struct {
	socket *nl.NetlinkSocket
	closed atomic.Bool
}

// Logged is such a packet.
type Logged struct {
	Prefix  string // that the rule gives
	Packet  []byte // from the IP header on, as far as the rule has it copied
	Hook    nftables.ChainHook
	In, Out int // numbers of the devices, 0 = none
}

// Logs listens to a group. The error says so where the kernel cannot (nfnetlink_log), or somebody else listens (unix.EBUSY).
func (h *Host) Logs(group uint16) (*Logs, error) {
	s, err := h.subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("hostnet: listen to packets that rules log: %w%s", err, hint(err))
	}
	l := &Logs{socket: s}
	_ = s.SetReceiveBufferSize(1<<20, true)
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_ULOG<<8|logConfig, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0, ResId: nl.Swap16(group)})
	req.AddData(nl.NewRtAttr(logCommand, []byte{logBind}))
	req.AddData(nl.NewRtAttr(logMode, append(binary.BigEndian.AppendUint32(nil, logMaxBytes), logCopyPacket, 0)))
	req.AddData(nl.NewRtAttr(logQueue, binary.BigEndian.AppendUint32(nil, 1))) // each at once
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		l.Close()
		return nil, fmt.Errorf("hostnet: listen to packets that rules log to group %d: %w%s", group, err, hint(err))
	}
	return l, nil
}

// Close ends Receive, with os.ErrClosed.
func (l *Logs) Close() {
	l.closed.Store(true)
	l.socket.Close()
}

// Receive waits for packets. What a full buffer lost is not told of.
func (l *Logs) Receive() ([]Logged, error) {
	for {
		news, from, err := l.socket.Receive()
		switch {
		case err != nil && l.closed.Load():
			return nil, os.ErrClosed
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("hostnet: receive packets that rules log: %w", err)
		}
		var all []Logged
		for _, m := range news {
			if from.Pid != nl.PidKernel || m.Header.Type != unix.NFNL_SUBSYS_ULOG<<8|logPacket {
				continue
			}
			if p, ok := readLogged(m.Data); ok {
				all = append(all, p)
			}
		}
		if len(all) > 0 {
			return all, nil
		}
	}
}

// readLogged reads a message behind its netlink header.
func readLogged(b []byte) (p Logged, ok bool) {
	const header = 4 // struct nfgenmsg
	if len(b) < header {
		return p, false
	}
	attrs, err := parseAttrs(b[header:])
	if err != nil {
		return p, false
	}
	for _, a := range attrs {
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case logHeader: // struct nfulnl_msg_packet_hdr: protocol, hook
			if len(a.Value) >= 3 {
				p.Hook = nftables.ChainHook(a.Value[2])
			}
		case logIn:
			p.In = int(number(a.Value))
		case logOut:
			p.Out = int(number(a.Value))
		case logPayload:
			p.Packet = a.Value
		case logPrefix:
			p.Prefix = string(bytes.TrimRight(a.Value, "\x00"))
		}
	}
	return p, len(p.Packet) > 0
}
