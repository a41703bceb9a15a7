package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// One transaction is not enough for every packet to be judged by the table as it was, or as it is to be, and by nothing between. The kernel
// changes rules at one moment (net/netfilter/nf_tables_api.c, nf_tables_commit), but a new map of ranges has its elements a moment later
// (nft_pipapo_commit), and the elements of a map that goes are gone at once for a packet that is on its way through the old rules.
//
// So a table that is Seamless has its sets and its chains without a hook on one of two sides, which follows their names. A change makes
// them on the other side, where no packet comes; then exchanges the rules of the base chains, and nothing else; and removes the former side
// when no packet is on its way through it any more.

// sides are what the names end in.
var sides = []string{".a", ".b"}

// on returns the table as it is called on one side.
func (t wantedTable) on(side string) wantedTable {
	k := *t.Table
	verdicts := map[*expr.Verdict]*expr.Verdict{}
	verdict := func(v *expr.Verdict) *expr.Verdict {
		if v == nil || v.Chain == "" {
			return v
		}
		if verdicts[v] == nil {
			verdicts[v] = &expr.Verdict{Kind: v.Kind, Chain: v.Chain + side}
		}
		return verdicts[v]
	}
	k.Sets = slices.Clone(k.Sets)
	for i := range k.Sets {
		s := &k.Sets[i]
		s.Name += side
		if s.DataType != nftables.TypeVerdict {
			continue
		}
		s.Elements = slices.Clone(s.Elements)
		for n := range s.Elements {
			s.Elements[n].VerdictData = verdict(s.Elements[n].VerdictData)
		}
	}
	k.Chains = slices.Clone(k.Chains)
	for i := range k.Chains {
		c := &k.Chains[i]
		if c.Hook == nil {
			c.Name += side
		}
		c.Rules = slices.Clone(c.Rules)
		for n, rule := range c.Rules {
			rule = slices.Clone(rule)
			for j, e := range rule {
				switch e := e.(type) {
				case *expr.Verdict:
					rule[j] = verdict(e)
				case *expr.Lookup:
					l := *e
					l.SetName += side
					rule[j] = &l
				}
			}
			c.Rules[n] = rule
		}
	}
	t.Table, t.side = &k, side
	return t
}

// sideInForce is the one that base chains lead to, "" = none: the table was made by an earlier weft, or by halves.
func sideInForce(have map[string]*nftables.Chain, rules map[string][][]byte) string {
	for name, c := range have {
		if c.Hooknum == nil {
			continue
		}
		for _, mark := range rules[name] {
			for _, side := range sides {
				if bytes.Contains(mark, []byte(side+".")) {
					return side
				}
			}
		}
	}
	return ""
}

// syncSeamless makes a Seamless table right, and says whether it changed anything.
func (h *Host) syncSeamless(conn *nftables.Conn, t wantedTable, there bool, have map[string]*nftables.Chain) (bool, error) {
	reason, at := "it was missing", ""
	kept := h.claim(t, there)
	if there {
		rules, err := h.raw.rules(t.key())
		if err != nil {
			return false, fmt.Errorf("hostnet: read %s: %w", t, err)
		}
		if at = sideInForce(have, rules); at == "" {
			reason = "it had no rules of this weft"
		} else {
			now := t.on(at)
			if reason, err = h.wrongWith(conn, now, have, rules); err != nil {
				return false, fmt.Errorf("hostnet: read %s: %w", t, err)
			}
			if reason == "" {
				differences, err := differentSets(conn, now)
				if err != nil || len(differences) == 0 {
					return false, err
				}
				if oneByOne(differences) {
					return true, h.changeElements(now, differences)
				}
			}
		}
	}
	next := t.on(sides[0])
	if at == sides[0] {
		next = t.on(sides[1])
	}
	if err := h.exchange(conn, next, there, kept, have); err != nil {
		return true, &ObjectError{Object: t.String(), Dev: t.device(), Err: h.tableTrouble(t.key(), err)}
	}
	h.forgetMissed(t.Table)
	h.tellChanged(t, reason)
	return true, nil
}

// oneByOne says whether elements may be changed where they are: those of a single key, in hashes, and of no two sets that one packet asks in
// turn. So each packet finds what was, or what is. Two keys may both be asked for by one packet, between whose questions they change.
func oneByOne(differences []setDifference) bool {
	key := map[int][]byte{} // of IPv4, and of IPv6
	var asked uint16
	for _, d := range differences {
		questions := d.asked
		if questions == 0 {
			questions = ^questions
		}
		if d.set.Interval || asked&questions != 0 {
			return false
		}
		asked |= questions
		for _, e := range slices.Concat(d.gone, d.come) {
			if k, there := key[len(e.Key)]; there && !bytes.Equal(k, e.Key) {
				return false
			}
			key[len(e.Key)] = e.Key
		}
	}
	return true
}

// exchange puts next in force beside what is there of its table. What cannot be removed of the former side afterwards is no error: the table
// is as it is to be for every packet, and the next look finds what is too much.
func (h *Host) exchange(conn *nftables.Conn, next wantedTable, there, kept bool, have map[string]*nftables.Chain) error {
	k := &nftables.Table{Name: next.Name, Family: next.Family}
	var sets []*nftables.Set
	if there {
		var err error
		if sets, err = conn.GetSets(k); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("read its sets: %w", err)
		}
	}
	beside := func(name string) bool { return strings.HasSuffix(name, next.side) }
	if err := h.transact(next.key(), func(change *nftables.Conn) error {
		if !kept { // then it is there by now, and the library would ask for one that is not
			change.AddTable(k)
		}
		removeParts(change, k, have, sets, beside) // what somebody who died in the midst has left
		for _, name := range next.Counters {
			change.AddObj(&nftables.CounterObj{Table: k, Name: name}) // one that is there goes on
		}
		return addParts(change, k, next, false)
	}); err != nil {
		return err
	}
	if err := h.transact(next.key(), func(change *nftables.Conn) error {
		for _, c := range have {
			if c.Hooknum == nil {
				continue
			}
			change.FlushChain(&nftables.Chain{Name: c.Name, Table: k})
			if at := slices.IndexFunc(next.Chains, func(w TableChain) bool { return w.Name == c.Name }); at < 0 || !next.Chains[at].is(c) {
				change.DelChain(&nftables.Chain{Name: c.Name, Table: k})
			}
		}
		return addParts(change, k, next, true)
	}); err != nil {
		return err
	}
	gracePeriod()
	if err := h.transact(next.key(), func(change *nftables.Conn) error {
		removeParts(change, k, have, sets, func(name string) bool { return !beside(name) })
		objects, err := conn.GetObjects(k)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("read its counters: %w", err)
		}
		for _, o := range objects {
			if c, ok := o.(*nftables.CounterObj); ok && c.Table != nil && c.Table.Name == k.Name && !slices.Contains(next.Counters, c.Name) {
				c.Table = k
				change.DeleteObject(c)
			}
		}
		return nil
	}); err != nil {
		h.log.Warn("what a table had before is still there, beside what is in force: removed at the next look", zap.String("object", next.String()), zap.Error(err))
	}
	return nil
}

// transact sends one transaction about a table.
func (h *Host) transact(t tableKey, write func(change *nftables.Conn) error) (err error) {
	change, done, err := h.writer(t)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	if err = write(change); err != nil {
		return err
	}
	return change.Flush()
}

// removeParts queues the removal of those chains without a hook and of those sets that are meant.
func removeParts(change *nftables.Conn, k *nftables.Table, chains map[string]*nftables.Chain, sets []*nftables.Set, meant func(name string) bool) {
	var gone []*nftables.Chain
	for _, c := range chains {
		if c.Hooknum == nil && meant(c.Name) {
			gone = append(gone, &nftables.Chain{Name: c.Name, Table: k})
		}
	}
	for _, c := range gone {
		change.FlushChain(c)
	}
	for _, s := range sets { // before the chains that their elements lead to
		if meant(s.Name) {
			s.Table = k
			change.DelSet(s)
		}
	}
	for _, c := range gone {
		change.DelChain(c)
	}
}

// addParts queues the base chains with their rules, or all that they lead to.
func addParts(change *nftables.Conn, k *nftables.Table, t wantedTable, base bool) error {
	for _, c := range t.Chains {
		if (c.Hook != nil) == base {
			change.AddChain(&nftables.Chain{Name: c.Name, Table: k, Type: c.Type, Hooknum: c.Hook, Priority: c.Priority, Device: c.Device})
		}
	}
	if !base {
		if err := addSets(change, k, t); err != nil {
			return err
		}
	}
	n := 0
	for _, c := range t.Chains {
		for _, exprs := range c.Rules {
			if (c.Hook != nil) == base {
				change.AddRule(&nftables.Rule{Table: k, Chain: &nftables.Chain{Name: c.Name, Table: k}, Exprs: exprs, UserData: t.mark(n)})
			}
			n++
		}
	}
	return nil
}

// gracePeriod waits until no packet is on its way by the rules that were in force when it was called: they are walked under RCU, and the
// kernel's answer to MEMBARRIER_CMD_GLOBAL is synchronize_rcu (kernel/sched/membarrier.c).
func gracePeriod() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
	if _, _, err := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); err != 0 {
		time.Sleep(100 * time.Millisecond) // with nohz_full it has none; a packet's way takes microseconds
	}
}

// tellChanged logs that a table was put in force.
func (h *Host) tellChanged(t wantedTable, reason string) {
	switch {
	case reason == "": // other elements only
	case h.firewall.tables[t.key()] == t.digest:
		h.repairs.Add(1)
		h.log.Warn("repaired", zap.String("action", "put back"), zap.String("object", t.String()), zap.String("reason", reason))
	default:
		h.log.Info("changed", zap.String("object", t.String()), zap.String("reason", reason))
	}
}
