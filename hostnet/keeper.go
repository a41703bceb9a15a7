package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Flags of a table that nobody else may flush, change or delete, and that stays when its owner is gone (linux/netfilter/nf_tables.h; persist
// is of Linux 6.9). The owner is a netlink socket.
const flagOwner, flagPersist = 0x2, 0x4

// keeper is the socket that owns tables which others are to keep their hands off. It lives as long as the Host: what becomes of its tables
// when it is closed is that anybody may change them, until the next daemon takes them over.
type keeper struct {
	conn *nftables.Conn // nil = there is none
	sock *mdlayher.Conn // conn's own
	held map[tableKey]bool
	told bool // that the kernel cannot
}

// connectKeeper opens it.
func (h *Host) connectKeeper() error {
	g := &h.keeper
	if g.conn != nil {
		return nil
	}
	conn, err := h.connect(nftables.WithSockOptions(func(c *mdlayher.Conn) error {
		g.sock = c
		return roomy(c)
	}))
	if err == nil {
		g.conn, g.held = conn, map[tableKey]bool{}
	}
	return err
}

// letGo closes the socket: after an error nobody knows what it still has to say.
func (h *Host) letGo() {
	g := &h.keeper
	if g.conn != nil {
		_ = g.conn.CloseLasting()
	}
	g.conn, g.sock, g.held = nil, nil, nil
	h.tellKept()
}

// claim makes a table the keeper's own, and makes it where it is not there; false where the kernel does not have that, or has a table that
// was made without. Then it is one like others.
func (h *Host) claim(t wantedTable, there bool) bool {
	g := &h.keeper
	if !t.Kept || h.connectKeeper() != nil {
		return false
	}
	if there && g.held[t.key()] {
		return true
	}
	delete(g.held, t.key())
	err := g.newTable(t.key())
	if err == nil {
		g.held[t.key()] = true
		h.tellKept()
		return true
	}
	if !g.told {
		g.told = true
		h.log.Warn("others may flush a table of ours, which is put back within a second", zap.Stringer("object", t), zap.String("reason", whyNotKept(there, h.tableHolder(t.key()))), zap.Error(err))
	}
	h.letGo()
	return false
}

// whyNotKept says why a table cannot be the keeper's: of one that was there, or of one that another process owns.
func whyNotKept(there bool, holder string) string {
	switch {
	case holder != "":
		return holder + " owns it: stop that"
	case there:
		return "it was made without an owner, and one cannot be given to it: `weft cleanup` while no daemon runs has the next one make it anew"
	}
	return "the kernel has no tables with flags owner and persist: Linux 6.9 and newer have"
}

func (h *Host) tellKept() {
	all := maps.Clone(h.keeper.held)
	h.kept.Store(&all)
}

// Keeps says whether nobody else may flush, change or delete a table. Cheap, from any goroutine.
func (h *Host) Keeps(family nftables.TableFamily, name string) bool {
	all := h.kept.Load()
	return all != nil && (*all)[tableKey{family, name}]
}

// newTable asks for a table with its flags: the library sends none.
func (g *keeper) newTable(t tableKey) error {
	attributes, err := mdlayher.MarshalAttributes([]mdlayher.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(t.name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flagOwner|flagPersist)},
	})
	if err != nil {
		return err
	}
	message := func(kind uint16, flags mdlayher.HeaderFlags, family byte, resource uint16, data []byte) mdlayher.Message {
		header := binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource) // struct nfgenmsg
		return mdlayher.Message{Header: mdlayher.Header{Type: mdlayher.HeaderType(kind), Flags: mdlayher.Request | flags}, Data: append(header, data...)}
	}
	_, err = g.sock.SendMessages([]mdlayher.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, mdlayher.Create|mdlayher.Acknowledge, byte(t.family), 0, attributes),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
	})
	if err == nil {
		_, err = g.sock.Receive()
	}
	return err
}

// writer returns what changes a table are to be sent by, and what to call when that is over, with the error that there was.
func (h *Host) writer(t tableKey) (*nftables.Conn, func(error), error) {
	if h.keeper.held[t] {
		return h.keeper.conn, func(err error) {
			if err != nil {
				h.letGo() // the library keeps what was queued before an error, and would send it with the next change
			}
		}, nil
	}
	conn, err := h.connect() // of its own, for the same reason
	if err != nil {
		return nil, nil, err
	}
	return conn, func(error) { _ = conn.CloseLasting() }, nil
}

// empty queues the removal of all that a table holds: one that is kept is not made anew, but filled anew.
func empty(change, conn *nftables.Conn, k *nftables.Table, chains map[string]*nftables.Chain) error {
	change.FlushTable(k)
	sets, err := conn.GetSets(k)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("read its sets: %w", err)
	}
	for _, s := range sets { // before the chains that their elements lead to
		s.Table = k
		change.DelSet(s)
	}
	for _, c := range chains {
		change.DelChain(c)
	}
	objects, err := conn.GetObjects(k)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("read its counters: %w", err)
	}
	for _, o := range slices.Backward(objects) {
		if c, ok := o.(*nftables.CounterObj); ok && c.Table != nil && c.Table.Name == k.Name {
			c.Table = k
			change.DeleteObject(c)
		}
	}
	return nil
}
