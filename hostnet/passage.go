package hostnet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// letThrough puts Want.Passage in force. A host firewall whose forward chain drops what no rule accepted would drop pods' packets,
// and no table of ours could help: a packet must be accepted in every table. So each such chain, iptables' FORWARD among them, gets
// rules at its end that accept what comes from or goes to the prefixes. They stand last, so that whatever the firewall's owner says
// about pods comes first. They are marked, put back when the firewall is loaded anew, and removed by Cleanup. It says whether it
// changed anything.
func (h *Host) letThrough(conn *nftables.Conn, passage []netip.Prefix) (changed bool, err error) {
	if len(passage) == 0 && !h.settled() {
		return false, nil // somebody may want it who has not spoken yet
	}
	chains, err := listChains(conn)
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256([]byte(fmt.Sprint(passage)))
	mark := RuleMark(hex.EncodeToString(sum[:4]))
	var errs []error
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Type != nftables.ChainTypeFilter || Ours(c.Table.Name) || c.Table.Name == LinkPrefix {
			continue
		}
		did, err := h.letThroughChain(conn, c, passage, mark)
		changed = changed || did
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

func (h *Host) letThroughChain(conn *nftables.Conn, c *nftables.Chain, passage []netip.Prefix, mark []byte) (changed bool, err error) {
	inet := c.Table.Family == nftables.TableFamilyINet
	if !inet && c.Table.Family != nftables.TableFamilyIPv4 && c.Table.Family != nftables.TableFamilyIPv6 {
		return false, nil
	}
	drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
	var want [][]expr.Any
	for _, p := range passage {
		if drops && (inet || p.Addr().Is6() == (c.Table.Family == nftables.TableFamilyIPv6)) {
			for _, source := range []bool{true, false} {
				want = append(want, append(Match(p, source, inet), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}))
			}
		}
	}
	have, err := conn.GetRules(c.Table, c)
	if err != nil {
		return false, fmt.Errorf("hostnet: list rules of %s %s: %w", c.Table.Name, c.Name, err)
	}
	var ours []*nftables.Rule
	right := 0
	for _, r := range have {
		if OurRule(r.UserData) {
			ours = append(ours, r)
		}
		if string(r.UserData) == string(mark) {
			right++
		}
	}
	if len(ours) == len(want) && right == len(want) {
		return false, nil
	}
	for _, exprs := range want {
		conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: exprs, UserData: mark})
	}
	for _, r := range ours {
		if err := conn.DelRule(r); err != nil {
			return false, fmt.Errorf("hostnet: remove a rule of %s %s: %w", c.Table.Name, c.Name, err)
		}
	}
	if err := conn.Flush(); err != nil {
		return true, fmt.Errorf("hostnet: let pods through %s %s: %w%s", c.Table.Name, c.Name, err, hint(err))
	}
	h.log.Info("the firewall drops what is forwarded by default; pods are let through by rules at its end, until `weft cleanup`",
		zap.String("table", c.Table.Name), zap.String("chain", c.Name), zap.Int("rules", len(want)))
	return true, nil
}

// Match is true for packets of p's family whose source or destination lies in p. In a table of family inet the family
// has to be asked for.
func Match(p netip.Prefix, source, inet bool) (exprs []expr.Any) {
	family, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4) // of the destination, RFC 791 and RFC 8200
	if p.Addr().Is6() {
		family, offset, size = unix.NFPROTO_IPV6, 24, 16
	}
	if source {
		offset -= size
	}
	if inet {
		exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}})
	}
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	return append(exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}
