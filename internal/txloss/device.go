package txloss

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// deviceCounts are a device's lost packets since it came, or its driver began to count.
type deviceCounts struct {
	name                     string
	dropped, errors, carrier uint64
	queue                    uint64 // by its root queueing discipline
}

// countDevices reads the counters of all devices, by number.
func (w *Watch) countDevices() (map[int]deviceCounts, error) {
	links, err := whole(w.rt.LinkList)
	if err != nil {
		return nil, fmt.Errorf("txloss: list devices: %w", err)
	}
	all := make(map[int]deviceCounts, len(links))
	for _, l := range links {
		a := l.Attrs()
		c := deviceCounts{name: a.Name}
		if s := a.Statistics; s != nil {
			c.dropped, c.errors, c.carrier = s.TxDropped, s.TxErrors, s.TxCarrierErrors
		}
		all[a.Index] = c
	}
	disciplines, err := whole(func() ([]netlink.Qdisc, error) { return w.rt.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("txloss: list queueing disciplines: %w", err)
	}
	for _, q := range disciplines {
		a := q.Attrs()
		c, known := all[a.LinkIndex]
		if known && a.Parent == netlink.HANDLE_ROOT && a.Statistics != nil && a.Statistics.Queue != nil {
			c.queue = uint64(a.Statistics.Queue.Drops)
			all[a.LinkIndex] = c
		}
	}
	return all, nil
}

// whole lists again where the kernel's list changed meanwhile and may lack an entry.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil // on a machine where devices come and go all the time
}
