package hostnet

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// removeTables removes every nftables table named weft*, in whatever family, and returns their names.
func removeTables(ns netns.NsHandle) ([]string, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return nil, fmt.Errorf("hostnet: open nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
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
			errs = append(errs, fmt.Errorf("hostnet: remove nftables table %s: %w%s", t.Name, err, hint(err)))
			continue
		}
		removed = append(removed, "nftables table "+t.Name)
	}
	return removed, errors.Join(errs...)
}
