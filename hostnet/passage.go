package hostnet

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Obstacle is a chain of somebody else's that stops what Want.Passage names, and that weft may not open.
type Obstacle struct {
	Chain string // family, table and chain
	Why   string // in words, with the remedy
}

func (o Obstacle) String() string { return "nftables chain " + o.Chain + ": " + o.Why }

// Obstacles returns what the last look at the firewall found in the pods' way and could not open. It is no error of an owner's Want:
// whether packets pass, their own way shows. It waits for nobody; nobody may edit the list.
func (h *Host) Obstacles() []Obstacle {
	if list := h.obstacles.Load(); list != nil {
		return *list
	}
	return nil
}

// letThrough puts Want.Passage in force. A host firewall whose forward chain drops what no rule accepted would drop pods' packets,
// and no table of ours could help: a packet must be accepted in every table. So each such chain, iptables' FORWARD among them, gets
// rules that accept what comes from or goes to the prefixes: at its end where its policy is drop, and before a rule that drops or rejects all
// that meets it. Whatever the firewall's owner says about pods comes first. They are marked, put back when the firewall is loaded anew, and
// removed by Cleanup. It says whether it changed anything. What it may not change is an Obstacle.
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
	before := h.Obstacles()
	var obstacles []Obstacle
	defer func() { h.obstacles.Store(&obstacles) }()
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Type != nftables.ChainTypeFilter || Ours(c.Table.Name) || c.Table.Name == LinkPrefix {
			continue
		}
		did, err := h.letThroughChain(conn, c, passage, mark)
		changed = changed || did
		if err == nil {
			continue
		}
		o := Obstacle{ChainName(c), fmt.Sprintf("pods are not let through: %v", err)}
		if by := h.tableHolder(tableKey{c.Table.Family, c.Table.Name}); by != "" {
			o.Why = fmt.Sprintf("%s owns the table and it alone may change it (%v): have it accept what comes from and goes to %v", by, err, passage)
		}
		obstacles = append(obstacles, o)
		if !slices.Contains(before, o) {
			h.log.Warn("the firewall is not opened for pods", zap.String("table", c.Table.Name), zap.String("chain", c.Name), zap.String("reason", o.Why))
		}
	}
	return changed, nil
}

// ChainName is a chain as nft names it: family, table and chain.
func ChainName(c *nftables.Chain) string {
	fam := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyARP: "arp"}[c.Table.Family]
	return fam + " " + c.Table.Name + " " + c.Name
}

// stopsAll says whether a rule lets nothing past it that meets it.
func stopsAll(r *nftables.Rule) bool {
	stops := false
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Verdict:
			stops = e.Kind == expr.VerdictDrop
		case *expr.Reject:
			stops = true
		case *expr.Target: // of iptables-nft
			stops = e.Name == "REJECT"
		default:
			return false
		}
	}
	return stops
}

func (h *Host) letThroughChain(conn *nftables.Conn, c *nftables.Chain, passage []netip.Prefix, mark []byte) (changed bool, err error) {
	inet := c.Table.Family == nftables.TableFamilyINet
	if !inet && c.Table.Family != nftables.TableFamilyIPv4 && c.Table.Family != nftables.TableFamilyIPv6 {
		return false, nil
	}
	have, err := conn.GetRules(c.Table, c)
	if err != nil {
		return false, fmt.Errorf("list its rules: %w", err)
	}
	end := slices.IndexFunc(have, stopsAll) // of what packets meet; -1 = the chain's
	var want [][]expr.Any
	for _, p := range passage {
		if (end >= 0 || c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop) && (inet || p.Addr().Is6() == (c.Table.Family == nftables.TableFamilyIPv6)) {
			for _, source := range []bool{true, false} {
				want = append(want, append(Match(p, source, inet), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}))
			}
		}
	}
	var ours []*nftables.Rule
	right := 0
	for i, r := range have {
		if OurRule(r.UserData) {
			ours = append(ours, r)
		}
		if string(r.UserData) == string(mark) && (end < 0 || i < end) {
			right++
		}
	}
	if len(ours) == len(want) && right == len(want) {
		return false, nil
	}
	change, err := h.connect() // of its own, so that what is queued before an error goes with it
	if err != nil {
		return false, err
	}
	defer change.CloseLasting()
	for _, exprs := range want {
		rule := &nftables.Rule{Table: c.Table, Chain: c, Exprs: exprs, UserData: mark}
		if end >= 0 {
			rule.Position = have[end].Handle
			change.InsertRule(rule)
		} else {
			change.AddRule(rule)
		}
	}
	for _, r := range ours {
		if err := change.DelRule(r); err != nil {
			return false, fmt.Errorf("remove a rule of it: %w", err)
		}
	}
	if err := change.Flush(); err != nil {
		return true, err
	}
	h.log.Info("the firewall drops what is forwarded; pods are let through by rules in it, until `weft cleanup`",
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
