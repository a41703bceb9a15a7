package hostnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nf_tables.h.
const (
	msgTrace     = 17 // NFT_MSG_TRACE
	groupNFTrace = 9  // NFNLGRP_NFTRACE

	traceTable, traceChain, traceHandle, traceType, traceVerdict, tracePolicy = 1, 2, 3, 4, 5, 16
	tracedByPolicy, tracedByRule                                              = 1, 3
	verdictCode                                                               = 1 // NFTA_VERDICT_CODE
)

// TracedDrop says which rule or policy of nftables drops or rejects the packets that send sends, "" = none does. They must have nftrace set
// (`meta nftrace set 1`), and nobody else's meanwhile. It takes as long as wait.
func (h *Host) TracedDrop(ctx context.Context, wait time.Duration, send func()) (string, error) {
	listener, err := h.subscribe(unix.NETLINK_NETFILTER, groupNFTrace)
	if err != nil {
		return "", fmt.Errorf("hostnet: listen to traces of nftables: %w", err)
	}
	found := make(chan string, 1)
	go func() {
		defer close(found)
		for {
			news, from, err := listener.Receive()
			if err != nil {
				return
			}
			for _, m := range news {
				if from.Pid != nl.PidKernel || m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|msgTrace {
					continue
				}
				if text := droppedBy(m.Data); text != "" {
					found <- text
					return
				}
			}
		}
	}()
	send()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	text := ""
	select {
	case text = <-found:
	case <-timer.C:
	case <-ctx.Done():
	}
	listener.Close()
	return text, nil
}

// droppedBy reads a trace's message; "" = the packet goes on.
func droppedBy(b []byte) string {
	const header = 4 // struct nfgenmsg
	if len(b) < header {
		return ""
	}
	attrs, err := nl.ParseRouteAttr(b[header:])
	if err != nil {
		return ""
	}
	var kind, verdict uint32 = 0, 1
	c := nftables.Chain{Table: &nftables.Table{Family: nftables.TableFamily(b[0])}}
	var handle uint64
	for _, a := range attrs {
		text := string(bytes.TrimRight(a.Value, "\x00"))
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case traceTable:
			c.Table.Name = text
		case traceChain:
			c.Name = text
		case traceHandle:
			if len(a.Value) >= 8 {
				handle = binary.BigEndian.Uint64(a.Value)
			}
		case traceType:
			kind = number(a.Value)
		case tracePolicy:
			verdict = number(a.Value)
		case traceVerdict:
			verdict = number(attribute(a.Value, verdictCode))
		}
	}
	name := ChainName(&c)
	switch {
	case verdict != 0: // NF_DROP
		return ""
	case kind == tracedByPolicy:
		return fmt.Sprintf("nftables chain %s drops them by its policy", name)
	case kind == tracedByRule:
		return fmt.Sprintf("nftables chain %s drops or rejects them by its rule of handle %d (`nft -a list chain %s`)", name, handle, name)
	}
	return ""
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 1
	}
	return binary.BigEndian.Uint32(b)
}
