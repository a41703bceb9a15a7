package tun

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// link is the kernel's view of a device, in the network namespace the port was opened in.
type link struct {
	handle *netlink.Handle // its sockets stay in that namespace
	index  int
}

func openLink(name string) (*link, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("tun: open netlink: %w", err)
	}
	l, err := h.LinkByName(name)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("tun: find %s: %w", name, err)
	}
	return &link{handle: h, index: l.Attrs().Index}, nil
}

// txDropped is how many packets the kernel had for the device and dropped, its queue being full.
func (l *link) txDropped() (uint64, error) {
	d, err := l.handle.LinkByIndex(l.index)
	if err != nil {
		return 0, fmt.Errorf("tun: read counters: %w", err)
	}
	return d.Attrs().Statistics.TxDropped, nil
}

// setQueue makes the device's queues of packets for us n packets long.
func (l *link) setQueue(n int) error {
	d, err := l.handle.LinkByIndex(l.index)
	if err == nil {
		err = l.handle.LinkSetTxQLen(d, n)
	}
	if err != nil {
		return fmt.Errorf("tun: set the queue's length: %w", err)
	}
	return nil
}

func (l *link) close() { l.handle.Close() }
