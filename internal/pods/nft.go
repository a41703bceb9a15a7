package pods

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/internal/hostnet"
)

// table is the nftables table of masquerading, one in family inet.
const table = "weft"

// firewall puts two things in force:
//
//   - Masquerading: what pods send to outside the overlay leaves under the node's address. Pod to pod stays as it is.
//   - Passage: a host firewall whose forward chain drops what no rule accepted would drop pods' packets, and no table of
//     ours could help: a packet must be accepted in every table. So each such chain, iptables' FORWARD among them, gets
//     rules at its end that accept what comes from or goes to the overlay. They stand last, so that whatever the
//     firewall's owner says about pods comes first. They are marked, put back when the firewall is loaded anew, and
//     removed by hostnet's Cleanup.
func (m *Manager) firewall(n Node) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(m.ns)))
	if err != nil {
		return fmt.Errorf("pods: open nftables: %w", err)
	}
	return errors.Join(m.masquerade(conn, n), m.passage(conn, n))
}

func (m *Manager) masquerade(conn *nftables.Conn, n Node) error {
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		if !m.o.Masquerade && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)) {
			return nil // the kernel has no nf_tables, and nothing is wanted of it
		}
		return fmt.Errorf("pods: list nftables tables: %w: load nf_tables, or set cni.masquerade: false", err)
	}
	there := slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == table })
	if !m.o.Masquerade {
		if !there {
			return nil
		}
		conn.DelTable(t)
		return flush(conn, "remove table "+table)
	}
	rules := masqueradeRules(n)
	mark := hostnet.RuleMark(digest(n.Network, n.Prefixes))
	chain := &nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
	if there {
		have, err := conn.GetRules(t, chain)
		if err == nil && len(have) == len(rules) && !slices.ContainsFunc(have, func(r *nftables.Rule) bool { return string(r.UserData) != string(mark) }) {
			return nil
		}
	}
	// One transaction: no packet finds the table half made.
	conn.AddTable(t)
	conn.DelTable(t)
	conn.AddTable(t)
	conn.AddChain(chain)
	for _, exprs := range rules {
		conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs, UserData: mark})
	}
	if err := flush(conn, "masquerade"); err != nil {
		return err
	}
	m.o.Log.Info("masquerading what pods send to the outside", zap.Stringers("from", n.Prefixes), zap.Stringers("except_to", n.Network))
	return nil
}

var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// masqueradeRules: to the overlay or to a group: as it is; else from our pods: masquerade.
func masqueradeRules(n Node) (rules [][]expr.Any) {
	for _, p := range slices.Concat(n.Network, n.Prefixes, multicast) {
		rules = append(rules, append(match(p, false, true), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}))
	}
	for _, p := range n.Prefixes {
		rules = append(rules, append(match(p, true, true), &expr.Counter{}, &expr.Masq{}))
	}
	return rules
}

// passage lets the overlay through forward chains that drop by default.
func (m *Manager) passage(conn *nftables.Conn, n Node) error {
	chains, err := conn.ListChains()
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil // no nf_tables, no chains
	}
	if err != nil {
		return fmt.Errorf("pods: list nftables chains: %w", err)
	}
	mark := hostnet.RuleMark(digest(n.Network, nil))
	var errs []error
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Type != nftables.ChainTypeFilter {
			continue
		}
		inet := c.Table.Family == nftables.TableFamilyINet
		if !inet && c.Table.Family != nftables.TableFamilyIPv4 && c.Table.Family != nftables.TableFamilyIPv6 {
			continue
		}
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		var want [][]expr.Any
		for _, p := range n.Network {
			if drops && (inet || p.Addr().Is6() == (c.Table.Family == nftables.TableFamilyIPv6)) {
				for _, source := range []bool{true, false} {
					want = append(want, append(match(p, source, inet), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}))
				}
			}
		}
		have, err := conn.GetRules(c.Table, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("pods: list rules of %s %s: %w", c.Table.Name, c.Name, err))
			continue
		}
		var ours []*nftables.Rule
		right := 0
		for _, r := range have {
			if hostnet.OurRule(r.UserData) {
				ours = append(ours, r)
			}
			if string(r.UserData) == string(mark) {
				right++
			}
		}
		if len(ours) == len(want) && right == len(want) {
			continue
		}
		for _, r := range ours {
			if err := conn.DelRule(r); err != nil {
				errs = append(errs, err)
			}
		}
		for _, exprs := range want {
			conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: exprs, UserData: mark})
		}
		if err := flush(conn, "let pods through "+c.Table.Name+" "+c.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		m.o.Log.Info("the firewall drops what is forwarded by default; pods are let through by rules at its end, until `weft cleanup`",
			zap.String("table", c.Table.Name), zap.String("chain", c.Name), zap.Int("rules", len(want)))
	}
	return errors.Join(errs...)
}

// match is true for packets of p's family whose source or destination lies in p. In a table of family inet the family
// has to be asked for.
func match(p netip.Prefix, source, inet bool) (exprs []expr.Any) {
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

// digest tells one set of rules from another.
func digest(lists ...[]netip.Prefix) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(lists)))
	return hex.EncodeToString(sum[:4])
}

func flush(conn *nftables.Conn, what string) error {
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("pods: nftables: %s: %w: the kernel may lack nft_masq or nft_chain_nat", what, err)
	}
	return nil
}
