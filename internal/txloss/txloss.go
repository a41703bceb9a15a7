// Package txloss asks the kernel what became of packets that it had taken: sendmsg says yes, and behind it a packet still has
// to find its neighbour's address and room in the device's queue. Where it finds neither it dies, and who sent it is not told.
//
// What the kernel tells of this is told of others' packets as well. A device's counters are of all that leaves by it; those
// of the neighbour tables are of all network namespaces of the machine together (struct neigh_table is one for each family).
package txloss

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch counts since it was made. Not safe for concurrent use.
type Watch struct {
	rt      *netlink.Handle
	ct      *nl.SocketHandle // of connection tracking; nil where the kernel has no netfilter
	queues  []*os.File       // where the kernel tells of packets that wait for a neighbour; empty where it does not tell us
	devices map[int]deviceCounts
	tables  tableCounts
	flows   trackCounts
}

// New begins to count, in the network namespace of the calling thread.
func New() (*Watch, error) {
	rt, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("txloss: open netlink: %w", err)
	}
	w := &Watch{rt: rt, queues: openQueues()}
	if w.devices, err = w.countDevices(); err == nil {
		w.tables, err = w.countTables()
	}
	if err == nil {
		w.ct, err = openTracking()
	}
	if err == nil {
		w.flows, err = w.countFlows()
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close frees what the Watch holds.
func (w *Watch) Close() error {
	w.rt.Close()
	if w.ct != nil {
		w.ct.Close()
	}
	var errs []error
	for _, f := range w.queues {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Since returns what was lost since New, by name: by the given devices, and by the machine's neighbour tables. What is 0 is
// left out.
//
//	eth0 tx-dropped                packets that the device's driver had no room for
//	eth0 tx-errors, tx-carrier     packets that it could not send
//	eth0 queue-dropped             packets that the device's queueing discipline dropped
//	machine neighbour-queue-full   packets that waited for a neighbour's address and had to make room for newer ones
//	machine neighbour-failed       neighbours that did not answer; with each the packets went that waited for it
//	machine neighbour-table-full   neighbours for which there was no room; the packet to it went
//	conntrack insert-failed        packets whose flow got addresses and ports that another had just got
//	conntrack table-full           packets of new flows for which connection tracking had no room
//	conntrack early-dropped        flows that it forgot to make room for new ones
func (w *Watch) Since(leaving []string) (map[string]uint64, error) {
	lost := map[string]uint64{}
	devices, err := w.countDevices()
	if err != nil {
		return nil, err
	}
	for index, now := range devices {
		if !slices.Contains(leaving, now.name) {
			continue
		}
		was := w.devices[index] // zero for a device that came later
		for name, n := range map[string]uint64{
			"tx-dropped": since(now.dropped, was.dropped), "tx-errors": since(now.errors, was.errors),
			"tx-carrier": since(now.carrier, was.carrier), "queue-dropped": since(now.queue, was.queue),
		} {
			if n > 0 {
				lost[now.name+" "+name] = n
			}
		}
	}
	tables, err := w.countTables()
	if err != nil {
		return nil, err
	}
	flows, err := w.countFlows()
	if err != nil {
		return nil, err
	}
	for name, n := range map[string]uint64{
		"machine neighbour-queue-full": since(tables.queueFull, w.tables.queueFull),
		"machine neighbour-failed":     since(tables.failed, w.tables.failed),
		"machine neighbour-table-full": since(tables.tableFull, w.tables.tableFull),
		"conntrack insert-failed":      since(flows.insertFailed, w.flows.insertFailed),
		"conntrack table-full":         since(flows.tableFull, w.flows.tableFull),
		"conntrack early-dropped":      since(flows.earlyDropped, w.flows.earlyDropped),
	} {
		if n > 0 {
			lost[name] = n
		}
	}
	return lost, nil
}

// since is how much a counter has grown; all of it where it began anew.
func since(now, was uint64) uint64 {
	if now < was {
		return now
	}
	return now - was
}
