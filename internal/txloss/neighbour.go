package txloss

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tableCounts are sums over the machine's neighbour tables since it booted.
type tableCounts struct{ queueFull, failed, tableFull uint64 }

// The kernel's neighbour tables, by the names it has for them.
var tableNames = []string{"arp_cache", "ndisc_cache"}

// openQueues opens the files that tell of full queues. Only the machine's own network namespace has them, which a daemon in
// another one may find behind process 1.
func openQueues() (files []*os.File) {
	for _, dir := range []string{"/proc/thread-self/net/stat/", "/proc/1/net/stat/"} {
		for _, name := range tableNames {
			if f, err := os.Open(dir + name); err == nil {
				files = append(files, f)
			}
		}
		if len(files) > 0 {
			return files
		}
	}
	return nil
}

func (w *Watch) countTables() (c tableCounts, err error) {
	for _, f := range w.queues {
		text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
		if err != nil {
			return c, fmt.Errorf("txloss: read %s: %w", f.Name(), err)
		}
		n, err := sumColumn(text, "unresolved_discards")
		if err != nil {
			return c, fmt.Errorf("txloss: %s: %w", f.Name(), err)
		}
		c.queueFull += n
	}
	request := nl.NewNetlinkRequest(unix.RTM_GETNEIGHTBL, unix.NLM_F_DUMP)
	request.AddData(&family{})
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGHTBL)
	if err != nil {
		return c, fmt.Errorf("txloss: list neighbour tables: %w", err)
	}
	for _, m := range messages {
		failed, full, err := tableStats(m)
		if err != nil {
			return c, fmt.Errorf("txloss: a neighbour table: %w", err)
		}
		c.failed += failed
		c.tableFull += full
	}
	return c, nil
}

// family is a struct ndtmsg (linux/neighbour.h) that asks for all.
type family struct{}

func (*family) Len() int          { return 4 }
func (*family) Serialize() []byte { return make([]byte, 4) }

// What of linux/neighbour.h is of use here.
const (
	attrName  = 1 // NDTA_NAME
	attrStats = 7 // NDTA_STATS: struct ndt_stats, numbers of 64 bits

	statFailed    = 3  // ndts_res_failed
	statTableFull = 10 // ndts_table_fulls, since Linux 4.3
)

// tableStats reads RTM_NEWNEIGHTBL. A table is told of once with its statistics and once for each device, without.
func tableStats(message []byte) (failed, tableFull uint64, err error) {
	if len(message) < (*family)(nil).Len() {
		return 0, 0, errors.New("the message is too short")
	}
	list := message[(*family)(nil).Len():]
	// The library slices behind the last attribute where its padding would end.
	attrs, err := nl.ParseRouteAttr(append(slices.Clip(list), make([]byte, -len(list)&3)...))
	if err != nil {
		return 0, 0, err
	}
	known := false
	var stats []byte
	for _, a := range attrs {
		switch a.Attr.Type {
		case attrName:
			known = slices.Contains(tableNames, string(bytes.TrimRight(a.Value, "\x00")))
		case attrStats:
			stats = a.Value
		}
	}
	number := func(i int) uint64 {
		if !known || len(stats) < 8*(i+1) {
			return 0
		}
		return binary.NativeEndian.Uint64(stats[8*i:])
	}
	return number(statFailed), number(statTableFull), nil
}

// sumColumn adds up a column of hexadecimal numbers that the first line names: a line for each processor.
func sumColumn(text []byte, name string) (sum uint64, err error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	if !lines.Scan() {
		return 0, errors.New("it is empty")
	}
	column := slices.Index(strings.Fields(lines.Text()), name)
	if column < 0 {
		return 0, fmt.Errorf("it has no column %s", name)
	}
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if column >= len(fields) {
			return 0, fmt.Errorf("a line has no column %s", name)
		}
		n, err := strconv.ParseUint(fields[column], 16, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, lines.Err()
}
