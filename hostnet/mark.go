package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Flow is what connection tracking knows of a connection: who began it, and where it ends up behind all address translation.
type Flow struct {
	Src, Dst   netip.Addr
	Protocol   uint8
	Port, From uint16 // the destination's, and the source's as it sends
	Mark       uint32
}

// MarkFlows gives a bit of their mark to the flows of TCP, UDP and SCTP that are to have it, takes it from the others, and says of how
// many. Other bits stay. Flows of other protocols have no answers that could begin one anew. On an error some flows may not be as they are
// to be, and it is to be called again: also where the kernel's list was cut short by a change of its table.
func (h *Host) MarkFlows(bit uint32, marked func(Flow) bool) (given, taken int, err error) {
	if h.ct == nil {
		return 0, 0, nil
	}
	defer func() {
		if given+taken > 0 {
			h.followed()
		}
	}()
	var errs []error
	for _, fam := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := h.ct.ConntrackTableList(netlink.ConntrackTable, fam)
		if err != nil {
			errs = append(errs, fmt.Errorf("hostnet: list flows: %w%s", err, hint(err)))
			if !errors.Is(err, netlink.ErrDumpInterrupted) { // what it did list is right
				continue
			}
		}
		for _, f := range flows {
			switch f.Forward.Protocol {
			case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
			default:
				continue
			}
			mark := f.Mark &^ bit
			if marked(Flow{Src: ipnet.Addr(f.Forward.SrcIP).Unmap(), Dst: ipnet.Addr(f.Reverse.SrcIP).Unmap(), Protocol: f.Forward.Protocol, Port: f.Reverse.SrcPort, From: f.Forward.SrcPort, Mark: f.Mark}) {
				mark |= bit
			}
			if mark == f.Mark {
				continue
			}
			f.Mark, f.ProtoInfo = mark, nil // the state may be another one by now
			switch err := h.ct.ConntrackUpdate(netlink.ConntrackTable, fam, f); {
			case err == nil && mark&bit != 0:
				given++
			case err == nil:
				taken++
			case !errors.Is(err, unix.ENOENT): // it has ended by itself
				errs = append(errs, fmt.Errorf("hostnet: mark the flow %s: %w%s", f, err, hint(err)))
			}
		}
	}
	return given, taken, errors.Join(errs...)
}
