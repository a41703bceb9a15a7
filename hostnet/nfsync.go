package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// setNumbers is held while the library numbers a set: it counts those of the whole process, without a lock.
var setNumbers sync.Mutex

// syncTableOf makes one table right, and says whether it changed anything.
func (h *Host) syncTableOf(conn *nftables.Conn, t wantedTable, there bool, chains map[tableKey]map[string]*nftables.Chain) (bool, error) {
	if t.Seamless {
		return h.syncSeamless(conn, t, there, chains[t.key()])
	}
	reason := "it was missing"
	kept := h.claim(t, there)
	if there {
		rules, err := h.raw.rules(t.key())
		if err == nil {
			reason, err = h.wrongWith(conn, t, chains[t.key()], rules)
		}
		if err != nil {
			return false, fmt.Errorf("hostnet: read %s: %w", t, err)
		}
		if reason == "" {
			return h.syncElements(conn, t)
		}
	}
	change, done, err := h.writer(t.key())
	if err != nil {
		return false, err
	}
	defer func() { done(err) }()
	k := &nftables.Table{Name: t.Name, Family: t.Family}
	switch {
	case kept && there:
		if err = empty(change, conn, k, chains[t.key()]); err != nil {
			return false, fmt.Errorf("hostnet: %s: %w", t, err)
		}
	case !kept:
		change.AddTable(k)
		change.DelTable(k)
		change.AddTable(k)
	}
	for _, name := range t.Counters {
		change.AddObj(&nftables.CounterObj{Table: k, Name: name})
	}
	for _, c := range t.Chains {
		change.AddChain(&nftables.Chain{Name: c.Name, Table: k, Type: c.Type, Hooknum: c.Hook, Priority: c.Priority, Device: c.Device})
	}
	if err = addSets(change, k, t); err != nil {
		return false, err
	}
	n := 0
	for _, c := range t.Chains {
		for _, exprs := range c.Rules {
			change.AddRule(&nftables.Rule{Table: k, Chain: &nftables.Chain{Name: c.Name, Table: k}, Exprs: exprs, UserData: t.mark(n)})
			n++
		}
	}
	if err = change.Flush(); err != nil {
		return false, &ObjectError{Object: t.String(), Dev: t.device(), Err: h.tableTrouble(t.key(), err)}
	}
	h.forgetMissed(t.Table)
	h.tellChanged(t, reason)
	return true, nil
}

// addSets queues a table's sets with their elements.
func addSets(change *nftables.Conn, k *nftables.Table, t wantedTable) error {
	for i := range t.Sets {
		s := t.Sets[i].Set
		s.Table = k
		setNumbers.Lock()
		err := change.AddSet(&s, nil)
		setNumbers.Unlock()
		if err == nil {
			err = inParts(t.Sets[i].Elements, func(part []nftables.SetElement) error { return change.SetAddElements(&s, part) })
		}
		if err != nil {
			return fmt.Errorf("hostnet: %s: set %s: %w", t, s.Name, err)
		}
	}
	return nil
}

// mark is the comment of the table's rule of this number.
func (t wantedTable) mark(n int) []byte { return RuleMark(fmt.Sprintf("%s%s.%d", t.digest, t.side, n)) }

// is says whether the kernel's chain is as wanted, but for its rules.
func (c *TableChain) is(k *nftables.Chain) bool {
	return k.Type == c.Type && equal(k.Hooknum, c.Hook) && equal(k.Priority, c.Priority) && (k.Policy == nil || *k.Policy != nftables.ChainPolicyDrop)
}

// wrongWith compares a table that is there, but for elements; "" = it is right.
func (h *Host) wrongWith(conn *nftables.Conn, t wantedTable, have map[string]*nftables.Chain, rules map[string][][]byte) (string, error) {
	if device := t.device(); device != "" && h.firewall.anew[device] {
		return device + " was made anew", nil
	}
	if len(have) != len(t.Chains) {
		return fmt.Sprintf("it had %d chains", len(have)), nil
	}
	n := 0
	for _, c := range t.Chains {
		is := have[c.Name]
		switch {
		case is == nil:
			return "it had no chain " + c.Name, nil
		case !c.is(is):
			return "its chain " + c.Name + " was another", nil
		case len(rules[c.Name]) != len(c.Rules):
			return fmt.Sprintf("its chain %s had %d rules", c.Name, len(rules[c.Name])), nil
		}
		for _, mark := range rules[c.Name] {
			if !bytes.Equal(mark, t.mark(n)) {
				return "its chain " + c.Name + " had other rules", nil
			}
			n++
		}
	}
	if len(t.Sets) == 0 {
		return "", nil
	}
	sets, err := conn.GetSets(&nftables.Table{Name: t.Name, Family: t.Family})
	if err != nil {
		return "", err
	}
	for _, s := range t.Sets {
		if !slices.ContainsFunc(sets, func(is *nftables.Set) bool { return is.Name == s.Name }) {
			return "it had no set " + s.Name, nil
		}
	}
	return "", nil
}

// rules returns the userdata of a table's rules by chain, in one dump: the library asks for each chain by itself.
func (r raw) rules(t tableKey) (map[string][][]byte, error) {
	answers, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
		req.Sockets = r
		req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(t.family), Version: nl.NFNETLINK_V0})
		req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(t.name)))
		return req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE)
	})
	if err != nil {
		return nil, err
	}
	by := map[string][][]byte{}
	for _, b := range answers {
		const header = 4 // struct nfgenmsg
		if len(b) < header {
			return nil, errors.New("a rule's message is too short")
		}
		attrs, err := parseAttrs(b[header:])
		if err != nil {
			return nil, err
		}
		var chain string
		var table string
		var mark []byte
		for _, a := range attrs {
			switch a.Attr.Type & nl.NLA_TYPE_MASK {
			case unix.NFTA_RULE_TABLE:
				table = string(bytes.TrimRight(a.Value, "\x00"))
			case unix.NFTA_RULE_CHAIN:
				chain = string(bytes.TrimRight(a.Value, "\x00"))
			case unix.NFTA_RULE_USERDATA:
				mark = a.Value
			}
		}
		if table == t.name { // an old kernel may not filter
			by[chain] = append(by[chain], mark)
		}
	}
	return by, nil
}

// Counts reads the named counters of a table of ours: packets by name. A table that is not there has none.
func (h *Host) Counts(family nftables.TableFamily, tables ...string) (map[string]map[string]uint64, error) {
	if len(tables) == 0 {
		return nil, nil
	}
	conn, err := h.connect()
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	all := map[string]map[string]uint64{}
	for _, name := range tables {
		objects, err := conn.GetObjects(&nftables.Table{Name: name, Family: family})
		if err != nil {
			return nil, fmt.Errorf("hostnet: read the counters of nftables table %s: %w", name, err)
		}
		for _, o := range objects {
			c, ok := o.(*nftables.CounterObj)
			if !ok || c.Table == nil || c.Table.Name != name {
				continue
			}
			if all[name] == nil {
				all[name] = map[string]uint64{}
			}
			all[name][c.Name] = c.Packets
		}
	}
	return all, nil
}

func equal[T comparable](a, b *T) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }

// setDifference is what a set's elements in the kernel are to become.
type setDifference struct {
	set        nftables.Set
	asked      uint16
	gone, come []nftables.SetElement
}

// differentSets reads the sets of a table and returns those that have other elements.
func differentSets(conn *nftables.Conn, t wantedTable) (list []setDifference, err error) {
	for i := range t.Sets {
		d := setDifference{set: t.Sets[i].Set, asked: t.Sets[i].Asked}
		d.set.Table = &nftables.Table{Name: t.Name, Family: t.Family}
		have, err := conn.GetSetElements(&d.set)
		if err != nil {
			return nil, fmt.Errorf("hostnet: %s: read set %s: %w", t, d.set.Name, err)
		}
		if d.set.DataType == nftables.TypeVerdict {
			for k := range have {
				have[k].Val, have[k].VerdictData = nil, verdictOf(have[k].Val)
			}
		}
		if d.gone, d.come = differentElements(have, t.Sets[i].Elements); len(d.gone)+len(d.come) > 0 {
			list = append(list, d)
		}
	}
	return list, nil
}

// changeElements makes the elements of sets right, in one transaction.
func (h *Host) changeElements(t wantedTable, differences []setDifference) error {
	err := h.transact(t.key(), func(change *nftables.Conn) error {
		for i := range differences {
			d := &differences[i]
			err := inParts(d.gone, func(part []nftables.SetElement) error { return change.SetDeleteElements(&d.set, part) })
			if err == nil {
				err = inParts(d.come, func(part []nftables.SetElement) error { return change.SetAddElements(&d.set, part) })
			}
			if err != nil {
				return fmt.Errorf("set %s: %w", d.set.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("hostnet: %s: change its sets: %w", t, h.tableTrouble(t.key(), err))
	}
	return nil
}

// syncElements makes the elements of a table's sets right, in one transaction: no packet finds some of them changed and others not.
func (h *Host) syncElements(conn *nftables.Conn, t wantedTable) (changed bool, err error) {
	differences, err := differentSets(conn, t)
	if err != nil || len(differences) == 0 {
		return false, err
	}
	return true, h.changeElements(t, differences)
}

// inParts hands over elements in as many messages as they need: an attribute of netlink holds 64 KiB, an element some 100 bytes.
func inParts(elements []nftables.SetElement, add func([]nftables.SetElement) error) error {
	for part := range slices.Chunk(elements, 256) {
		if err := add(part); err != nil {
			return err
		}
	}
	return nil
}

func differentElements(have, want []nftables.SetElement) (gone, come []nftables.SetElement) {
	missing := make(map[string]nftables.SetElement, len(want))
	for _, e := range want {
		missing[element(e)] = e
	}
	for _, e := range have {
		k := element(e)
		if _, wanted := missing[k]; wanted {
			delete(missing, k)
			continue
		}
		gone = append(gone, e)
	}
	for _, e := range want { // in their order
		if _, ok := missing[element(e)]; ok {
			come = append(come, e)
		}
	}
	return gone, come
}
