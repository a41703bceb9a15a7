package hostnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
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

	// Seamless has each packet judged by the table as it was or as it is to be, while it changes. Its names may end in no ".a" and ".b"; its
	// rules ask sets by expr.Lookup alone.
	Seamless bool

	// Kept says that nobody else is to flush, change or delete it while this process lives, where the kernel can have it so.
	Kept bool

	Masquerades *Masqueraded // what it does to flows, nil = nothing: those that it missed are forgotten when it is put in force
}

// Set is a set or map, with its elements as the kernel lists them. Set.Table is filled in here.
type Set struct {
	nftables.Set
	Elements []nftables.SetElement

	// Asked says which sets of a Seamless table one packet may ask in turn: those that share a bit. Elements of two of these never change where
	// they are, for a packet could find what was in one and what is in the other. 0 = it may be asked with any other.
	Asked uint16
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

func (t *Table) key() tableKey { return tableKey{t.Family, t.Name} }

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

// element is all of an element that tells it from another, and what it maps to.
func element(e nftables.SetElement) string {
	s := fmt.Sprintf("%x %x %t %x", e.Key, e.KeyEnd, e.IntervalEnd, e.Val)
	if v := e.VerdictData; v != nil {
		s += fmt.Sprintf(" %d %s", v.Kind, v.Chain)
	}
	return s
}

// verdictOf reads what the kernel says that an element of a verdict map maps to (NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN), which the library
// leaves as bytes; nil for what ends an interval.
func verdictOf(b []byte) *expr.Verdict {
	attrs, err := parseAttrs(b)
	if err != nil || len(attrs) == 0 {
		return nil
	}
	v := &expr.Verdict{}
	for _, a := range attrs {
		switch {
		case a.Attr.Type&nl.NLA_TYPE_MASK == unix.NFTA_VERDICT_CODE && len(a.Value) >= 4:
			v.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(a.Value)))
		case a.Attr.Type&nl.NLA_TYPE_MASK == unix.NFTA_VERDICT_CHAIN:
			v.Chain = string(bytes.TrimRight(a.Value, "\x00"))
		}
	}
	return v
}

// elements tells one content of sets from another, without a look at each: a Want is never edited, so the same list has the same
// elements.
func elements(sets []Set) (told string) {
	for _, s := range sets {
		told += fmt.Sprintf(" %s %d %p", s.Name, len(s.Elements), s.Elements)
	}
	return told
}
