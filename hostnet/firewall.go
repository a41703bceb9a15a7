package hostnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Table is an nftables table of ours. Chains and rules are put in force in one transaction, so that no packet finds them half made;
// a change of elements alone leaves them be.
type Table struct {
	Name     string // starts with LinkPrefix
	Family   nftables.TableFamily
	Counters []string // named ones, for rules to refer to (expr.Objref); Counts reads them
	Sets     []Set
	Chains   []TableChain

	Masquerades *Masqueraded // what it does to flows, nil = nothing: those that it missed are forgotten when it is put in force
}

// Set is a set or map, with its elements as the kernel lists them. Set.Table is filled in here.
type Set struct {
	nftables.Set
	Elements []nftables.SetElement
}

// TableChain is a chain; without a Hook one that others jump to.
type TableChain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority *nftables.ChainPriority
	Device   string // whose packets it sees, in family netdev: one of ours
	Rules    [][]expr.Any
}

// device is the link of ours that a table hangs on, "" for none.
func (t *Table) device() string {
	for _, c := range t.Chains {
		if c.Device != "" {
			return c.Device
		}
	}
	return ""
}

type tableKey struct {
	family nftables.TableFamily
	name   string
}

func (t *Table) key() tableKey  { return tableKey{t.Family, t.Name} }
func (t *Table) String() string { return "nftables table " + t.Name }

// digest tells one content of a table from another, elements of sets left aside.
func (t *Table) digest() (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, t.Family, t.Name)
	if len(t.Counters) > 0 {
		fmt.Fprintln(sum, t.Counters)
	}
	for _, s := range t.Sets {
		fmt.Fprintln(sum, s.Name, s.IsMap, s.Interval, s.Constant, s.Dynamic, s.Concatenation, s.Counter, s.KeyType.Name, s.DataType.Name, s.Timeout, s.Size)
	}
	for _, c := range t.Chains {
		fmt.Fprintln(sum, c.Name, c.Type, c.Hook != nil && c.Priority != nil)
		if c.Hook != nil && c.Priority != nil {
			fmt.Fprintln(sum, *c.Hook, *c.Priority, c.Device)
		}
		for _, rule := range c.Rules {
			if err := digestRule(sum, t.Family, rule); err != nil {
				return "", fmt.Errorf("hostnet: %s: chain %s: %w", t, c.Name, err)
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:6]), nil
}

func digestRule(sum hash.Hash, family nftables.TableFamily, rule []expr.Any) error {
	fmt.Fprintln(sum, len(rule))
	for _, e := range rule {
		b, err := expr.Marshal(byte(family), e)
		if err != nil {
			return fmt.Errorf("an expression cannot be written: %w", err)
		}
		sum.Write(b)
	}
	return nil
}

// firewall is what the last look at nftables left.
type firewall struct {
	generation uint32 // of the ruleset when all was right; 0 = look
	want       string // what that was of
	tables     map[tableKey]string
	looked     bool
	anew       map[string]bool // links made since: what hung on an earlier one of the name went with it, and nothing tells
	ended      time.Time       // of the last look that was not a question only
	took       time.Duration   // that look
	looking    time.Duration   // the last call, whatever it did
}

// connect opens nftables in the Host's namespace, over one socket until CloseLasting.
func (h *Host) connect() (*nftables.Conn, error) {
	ns, err := h.elsewhere()
	if err != nil {
		return nil, err
	}
	options := []nftables.ConnOption{nftables.AsLasting()}
	if ns.IsOpen() {
		options = append(options, nftables.WithNetNSFd(int(ns)))
	}
	conn, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("hostnet: open nftables: %w", err)
	}
	return conn, nil
}

// absent says whether an error is that of a kernel without nf_tables.
func absent(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

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
	attrs, err := nl.ParseRouteAttr(b[header:])
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

// wantedTable is a table, what tells it from another, and who wants it.
type wantedTable struct {
	*Table
	digest string
	owner  *owner
}

// mergeTables is merge for nftables: a table is one owner's.
func (h *Host) mergeTables() (list []wantedTable) {
	for _, o := range h.owners {
		for i := range o.want.Tables {
			t := &o.want.Tables[i]
			digest, err := t.digest()
			if err == nil && !strings.HasPrefix(t.Name, LinkPrefix) {
				err = fmt.Errorf("hostnet: %s is not ours: its name does not start with %s", t, LinkPrefix)
			}
			if at := slices.IndexFunc(list, func(w wantedTable) bool { return w.key() == t.key() }); err == nil && at >= 0 {
				err = &Contradiction{Owner: o.name, Other: list[at].owner.name, Want: t.String(), Has: list[at].String()}
			}
			if err != nil {
				o.failFirewall(err)
				continue
			}
			list = append(list, wantedTable{t, digest, o})
		}
	}
	return list
}

// syncFirewall makes the tables be as wanted, lets Passage through the chains of others, and sweeps tables of ours that nobody wants.
// Where nobody has changed nftables since all was right it only asks for that.
func (h *Host) syncFirewall() {
	f := &h.firewall
	h.firewallNews.Store(false)
	for _, o := range h.owners {
		o.firewallErr = nil
	}
	tables := h.mergeTables()
	passage := union(h, func(w *Want) []netip.Prefix { return w.Passage })
	want := fmt.Sprint(h.settled(), passage)
	for _, t := range tables {
		want += fmt.Sprint(t.key(), t.digest, elements(t.Sets))
	}
	needed := len(tables) > 0 || len(passage) > 0
	if !needed && f.looked && want == f.want {
		return // nothing is there, nor was
	}
	before := h.raw.generation()
	if before != 0 && before == f.generation && want == f.want && len(f.anew) == 0 {
		return
	}
	f.generation = 0
	began := time.Now()
	defer func() { f.ended, f.took, f.looking = time.Now(), time.Since(began), time.Since(began) }()
	fail := func(err error) {
		for _, o := range h.owners {
			if len(o.want.Tables) > 0 || len(o.want.Passage) > 0 {
				o.failFirewall(err)
			}
		}
	}
	conn, err := h.connect()
	if err != nil {
		if !absent(err) || len(tables) > 0 {
			fail(err)
		}
		f.looked, f.want = absent(err), want
		return
	}
	defer conn.CloseLasting()
	there, err := conn.ListTables()
	if err != nil {
		// Without nf_tables there is no chain that would have to let anything through.
		if !absent(err) || len(tables) > 0 {
			fail(fmt.Errorf("hostnet: list nftables tables: %w%s", err, hint(err)))
		}
		f.looked, f.want = absent(err), want
		return
	}
	changed, right := false, true
	now := map[tableKey]string{}
	chains, err := chainsByTable(conn)
	if err != nil {
		fail(fmt.Errorf("hostnet: list nftables chains: %w%s", err, hint(err)))
		return
	}
	for _, t := range tables {
		did, err := h.syncTableOf(conn, t, slices.ContainsFunc(there, func(k *nftables.Table) bool { return tableKey{k.Family, k.Name} == t.key() }), chains)
		changed = changed || did
		if err != nil {
			t.owner.failFirewall(err)
			right = false
			continue
		}
		now[t.key()] = t.digest
	}
	did, err := h.letThrough(conn, passage)
	changed = changed || did
	if err != nil {
		fail(err)
		right = false
	}
	for _, k := range there {
		key := tableKey{k.Family, k.Name}
		_, retired := f.tables[key]
		if _, wanted := now[key]; wanted || !strings.HasPrefix(k.Name, LinkPrefix) || !retired && !h.settled() ||
			slices.ContainsFunc(tables, func(t wantedTable) bool { return t.key() == key }) {
			continue
		}
		conn.DelTable(k)
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			h.log.Warn("an nftables table of ours that nobody wants stays", zap.String("table", k.Name), zap.Error(err))
			right = false
			continue
		}
		h.log.Info("removed", zap.String("object", "nftables table "+k.Name), zap.String("reason", "not wanted"))
		changed = true
	}
	f.tables, f.looked = now, true
	if right {
		clear(f.anew)
		f.want = want
		if !changed {
			f.generation = before // after a change of ours, the next look tells
		}
	}
}

// chainsByTable lists all chains by table and name.
func chainsByTable(conn *nftables.Conn) (map[tableKey]map[string]*nftables.Chain, error) {
	all, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	by := map[tableKey]map[string]*nftables.Chain{}
	for _, c := range all {
		k := tableKey{c.Table.Family, c.Table.Name}
		if by[k] == nil {
			by[k] = map[string]*nftables.Chain{}
		}
		by[k][c.Name] = c
	}
	return by, nil
}

// syncTableOf makes one table right, and says whether it changed anything.
func (h *Host) syncTableOf(conn *nftables.Conn, t wantedTable, there bool, chains map[tableKey]map[string]*nftables.Chain) (bool, error) {
	reason := "it was missing"
	if there {
		var err error
		if reason, err = h.wrongWith(conn, t, chains[t.key()]); err != nil {
			return false, fmt.Errorf("hostnet: read %s: %w", t, err)
		}
		if reason == "" {
			return syncElements(conn, t)
		}
	}
	k := &nftables.Table{Name: t.Name, Family: t.Family}
	conn.AddTable(k)
	conn.DelTable(k)
	conn.AddTable(k)
	for _, name := range t.Counters {
		conn.AddObj(&nftables.CounterObj{Table: k, Name: name})
	}
	for _, c := range t.Chains {
		conn.AddChain(&nftables.Chain{Name: c.Name, Table: k, Type: c.Type, Hooknum: c.Hook, Priority: c.Priority, Device: c.Device})
	}
	for i := range t.Sets {
		s := t.Sets[i].Set
		s.Table = k
		if err := conn.AddSet(&s, t.Sets[i].Elements); err != nil {
			return false, fmt.Errorf("hostnet: %s: set %s: %w", t, s.Name, err)
		}
	}
	n := 0
	for _, c := range t.Chains {
		for _, exprs := range c.Rules {
			conn.AddRule(&nftables.Rule{Table: k, Chain: &nftables.Chain{Name: c.Name, Table: k}, Exprs: exprs, UserData: t.mark(n)})
			n++
		}
	}
	if err := conn.Flush(); err != nil {
		return false, &ObjectError{t.String(), t.device(), fmt.Errorf("%w: the kernel may lack what its rules need", err)}
	}
	h.forgetMissed(t.Table)
	if h.firewall.tables[t.key()] == t.digest {
		h.repairs.Add(1)
		h.log.Warn("repaired", zap.String("action", "put back"), zap.String("object", t.String()), zap.String("reason", reason))
	} else {
		h.log.Info("changed", zap.String("object", t.String()), zap.String("reason", reason))
	}
	return true, nil
}

// mark is the comment of the table's rule of this number.
func (t wantedTable) mark(n int) []byte { return RuleMark(fmt.Sprintf("%s.%d", t.digest, n)) }

// wrongWith compares a table that is there, but for elements; "" = it is right.
func (h *Host) wrongWith(conn *nftables.Conn, t wantedTable, have map[string]*nftables.Chain) (string, error) {
	if device := t.device(); device != "" && h.firewall.anew[device] {
		return device + " was made anew", nil
	}
	if len(have) != len(t.Chains) {
		return fmt.Sprintf("it had %d chains", len(have)), nil
	}
	rules, err := h.raw.rules(t.key())
	if err != nil {
		return "", err
	}
	n := 0
	for _, c := range t.Chains {
		is := have[c.Name]
		switch {
		case is == nil:
			return "it had no chain " + c.Name, nil
		case is.Type != c.Type || !equal(is.Hooknum, c.Hook) || !equal(is.Priority, c.Priority) || is.Policy != nil && *is.Policy == nftables.ChainPolicyDrop:
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
		attrs, err := nl.ParseRouteAttr(b[header:])
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

// syncElements makes the elements of a table's sets right.
func syncElements(conn *nftables.Conn, t wantedTable) (bool, error) {
	changed := false
	for i := range t.Sets {
		s := t.Sets[i].Set
		s.Table = &nftables.Table{Name: t.Name, Family: t.Family}
		have, err := conn.GetSetElements(&s)
		if err != nil {
			return changed, fmt.Errorf("hostnet: %s: read set %s: %w", t, s.Name, err)
		}
		gone, come := differentElements(have, t.Sets[i].Elements)
		if len(gone)+len(come) == 0 {
			continue
		}
		if len(gone) > 0 {
			err = conn.SetDeleteElements(&s, gone)
		}
		if err == nil && len(come) > 0 {
			err = conn.SetAddElements(&s, come)
		}
		if err == nil {
			err = conn.Flush()
		}
		if err != nil {
			return true, fmt.Errorf("hostnet: %s: set %s: %w", t, s.Name, err)
		}
		changed = true
	}
	return changed, nil
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

// element is all of an element that tells it from another, and what it maps to.
func element(e nftables.SetElement) string {
	s := fmt.Sprintf("%x %x %t %x", e.Key, e.KeyEnd, e.IntervalEnd, e.Val)
	if v := e.VerdictData; v != nil {
		s += fmt.Sprintf(" %d %s", v.Kind, v.Chain)
	}
	return s
}

// elements tells one content of sets from another, without a look at each: a Want is never edited, so the same list has the same
// elements.
func elements(sets []Set) (told string) {
	for _, s := range sets {
		told += fmt.Sprintf(" %s %d %p", s.Name, len(s.Elements), s.Elements)
	}
	return told
}
