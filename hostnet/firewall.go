package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

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

// transaction bounds what one change of nftables may hold, bytes: the kernel takes it in one message.
const transaction = 64 << 20

// roomy makes room for a transaction of many elements; where it may not be made, a large one fails with EMSGSIZE.
func roomy(c *mdlayher.Conn) error {
	_ = errors.Join(c.SetWriteBuffer(transaction), c.SetReadBuffer(transaction))
	return nil
}

// connect opens nftables in the Host's namespace, over one socket until CloseLasting.
func (h *Host) connect(more ...nftables.ConnOption) (*nftables.Conn, error) {
	ns, err := h.elsewhere()
	if err != nil {
		return nil, err
	}
	options := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(roomy)}
	if ns.IsOpen() {
		options = append(options, nftables.WithNetNSFd(int(ns)))
	}
	conn, err := nftables.New(append(options, more...)...)
	if err != nil {
		return nil, fmt.Errorf("hostnet: open nftables: %w", err)
	}
	return conn, nil
}

// absent says whether an error is that of a kernel without nf_tables.
func absent(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// wantedTable is a table, what tells it from another, and who wants it.
type wantedTable struct {
	*Table
	digest string
	owner  *owner
	side   string // of a Seamless one, "" = none yet
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
			list = append(list, wantedTable{t, digest, o, ""})
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
		change, done, err := h.writer(key)
		if err == nil {
			change.DelTable(k)
			err = change.Flush()
			done(err)
			delete(h.keeper.held, key)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			if said := "table " + k.Name; !h.said[said] { // it is tried again
				h.said[said] = true
				h.log.Warn("an nftables table with a name of ours that nobody wants stays", zap.String("table", k.Name), zap.Error(h.tableTrouble(key, err)))
			}
			right = false
			continue
		}
		h.log.Info("removed", zap.String("object", "nftables table "+k.Name), zap.String("reason", "not wanted"))
		changed = true
	}
	f.tables, f.looked = now, true
	h.wrote = h.wrote || changed
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
