package hostnet

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nfgenmsg (linux/netfilter/nfnetlink.h), 4 bytes: family 1 | version 1 | res_id 2, big-endian
const sizeofNfGenMsg = 4

// NFTA_TABLE_NAME (linux/netfilter/nf_tables.h).
const nftaTableName = 1

// removeTables removes every nftables table named weft*, in whatever family, and returns their names.
func removeTables(ns netns.NsHandle) ([]string, error) {
	s, err := openSocket(ns, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // no netfilter, no tables
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.close() }()

	type table struct {
		family uint8
		name   string
	}
	list := message{kind: nftKind(unix.NFT_MSG_GETTABLE), body: make([]byte, sizeofNfGenMsg)}
	tables, err := dump(s, list, nftKind(unix.NFT_MSG_NEWTABLE), func(b []byte) (t table, ok bool) {
		if len(b) < sizeofNfGenMsg {
			return t, false
		}
		t.family = b[0]
		for kind, v := range attrs(b[sizeofNfGenMsg:]) {
			if kind == nftaTableName {
				t.name = unix.ByteSliceToString(v)
			}
		}
		return t, strings.HasPrefix(t.name, LinkPrefix)
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil, nil // the kernel has no nf_tables
	}
	if err != nil {
		return nil, fmt.Errorf("hostnet: list nftables tables: %w%s", err, hint(err))
	}
	var removed []string
	var errs []error
	for _, t := range tables {
		if err := s.deleteTable(t.family, t.name); err != nil {
			errs = append(errs, fmt.Errorf("hostnet: remove nftables table %s: %w%s", t.name, err, hint(err)))
			continue
		}
		removed = append(removed, "nftables table "+t.name)
	}
	return removed, errors.Join(errs...)
}

func nftKind(k int) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | uint16(k) }

// deleteTable sends the transaction nf_tables wants: begin, delete, end. Only the middle one is acknowledged.
func (s *socket) deleteTable(family uint8, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	border := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	out := s.append(nil, message{kind: unix.NFNL_MSG_BATCH_BEGIN, body: border}, 0)
	del := message{kind: nftKind(unix.NFT_MSG_DELTABLE), body: []byte{family, unix.NFNETLINK_V0, 0, 0}}
	del.text(nftaTableName, name)
	out = s.append(out, del, unix.NLM_F_ACK)
	seq := s.seq
	out = s.append(out, message{kind: unix.NFNL_MSG_BATCH_END, body: border}, 0)
	answer := make([]error, 1)
	if err := s.exchange(out, seq, answer); err != nil {
		return err
	}
	return answer[0]
}
