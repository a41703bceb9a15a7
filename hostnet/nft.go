package hostnet

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// removeTables removes every nftables table named weft*, in whatever family, and returns their names.
func (h *Host) removeTables() ([]string, error) {
	conn, err := h.connect()
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	tables, err := conn.ListTables()
	if absent(err) {
		return nil, nil // the kernel has no nf_tables, so no tables
	}
	if err != nil {
		return nil, fmt.Errorf("hostnet: list nftables tables: %w%s", err, hint(err))
	}
	var removed []string
	var errs []error
	for _, t := range tables {
		if !strings.HasPrefix(t.Name, LinkPrefix) {
			continue
		}
		conn.DelTable(t)
		if err := conn.Flush(); err != nil {
			errs = append(errs, fmt.Errorf("hostnet: remove nftables table %s: %w", t.Name, h.tableTrouble(tableKey{t.Family, t.Name}, err)))
			continue
		}
		removed = append(removed, "nftables table "+t.Name)
	}
	return removed, errors.Join(errs...)
}

// ruleMark starts the comment of rules that weft puts into chains of others.
const ruleMark = "weft "

// RuleMark is the userdata of a rule of ours in a chain of others: a comment, as `nft list ruleset` shows it
// (NFTNL_UDATA_RULE_COMMENT of libnftnl: type 0, length, text with its zero byte). OurRule knows it.
func RuleMark(text string) []byte {
	comment := append([]byte(ruleMark+text), 0)
	return append([]byte{0, byte(len(comment))}, comment...)
}

// OurRule says whether a rule's userdata is a RuleMark.
func OurRule(userdata []byte) bool {
	return len(userdata) > 2 && userdata[0] == 0 && strings.HasPrefix(string(userdata[2:]), ruleMark)
}

// listChains returns all chains; a kernel without nf_tables has none.
func listChains(conn *nftables.Conn) ([]*nftables.Chain, error) {
	chains, err := conn.ListChains()
	if err != nil && !absent(err) {
		return nil, fmt.Errorf("hostnet: list nftables chains: %w%s", err, hint(err))
	}
	return chains, nil
}

// HasChain says whether the kernel has a chain.
func (h *Host) HasChain(family nftables.TableFamily, table, chain string) (bool, error) {
	conn, err := h.connect()
	if err != nil {
		return false, err
	}
	defer conn.CloseLasting()
	chains, err := listChains(conn)
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Name == chain && c.Table.Name == table && c.Table.Family == family
	}), err
}

// removeRules removes rules of ours from the forward chains of others, and returns them in words.
func (h *Host) removeRules() ([]string, error) {
	conn, err := h.connect()
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	chains, err := listChains(conn)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("hostnet: list rules of %s %s: %w", c.Table.Name, c.Name, err))
			continue
		}
		n := 0
		for _, r := range rules {
			if OurRule(r.UserData) {
				errs = append(errs, conn.DelRule(r))
				n++
			}
		}
		if n == 0 {
			continue
		}
		if err := conn.Flush(); err != nil {
			errs = append(errs, fmt.Errorf("hostnet: remove rules of %s %s: %w%s", c.Table.Name, c.Name, err, hint(err)))
			continue
		}
		removed = append(removed, fmt.Sprintf("%d nftables rules in %s %s", n, c.Table.Name, c.Name))
	}
	return removed, errors.Join(errs...)
}
