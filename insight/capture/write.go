package capture

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"weft/packet"
)

// writer makes a pcapng file of the rings. All its interfaces are Ethernet and have one snapshot length: libpcap refuses files in which
// they differ, and until 1.10 also those with several interfaces of raw IP.
type writer struct {
	c       *Capture
	ng      *pcapgo.NgWriter
	id      [sides]int
	written [sides]uint64
	started time.Time
	dirty   bool
}

func newWriter(w io.Writer, c *Capture) (*writer, error) {
	out := &writer{c: c, started: time.Now(), dirty: true}
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Application: strings.TrimSpace("weft " + c.o.Version), OS: "linux", Comment: "what passed the lanes of node " + c.o.Node}}
	for s := range sides {
		if !c.want[s] {
			continue
		}
		about := c.about(s)
		var err error
		if out.ng == nil {
			out.ng, err = pcapgo.NewNgWriterInterface(w, about, options)
		} else {
			out.id[s], err = out.ng.AddInterface(about)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// about describes an interface.
func (c *Capture) about(s side) pcapgo.NgInterface {
	e := c.ends.Load()
	i := pcapgo.NgInterface{LinkType: layers.LinkTypeEthernet, SnapLength: uint32(c.o.SnapLen), TimestampResolution: 9, Filter: c.o.Filter.String()}
	frames := "IP packets behind made-up Ethernet headers"
	if c.layer == packet.Ethernet {
		frames = "frames"
	}
	const made = "outer headers of AF_XDP are the real ones, but for the IPv4 identification of what goes out; where the kernel makes them, they " +
		"are made up from the addresses and ports, with MACs of zero"
	switch s {
	case inside:
		i.Name = e.Inside
		i.Description = "inside: " + frames + " from and to the pods; checksums that the kernel left unfinished are as it left them"
	case outside:
		i.Name = e.Outside
		i.Description = "outside: tunnel packets from and to the underlay; " + made
	default:
		i.Name = "drops"
		i.Description = "what weft dropped, as it was then, the reason in the comment; " + made
	}
	return i
}

// drain writes what the rings hold, oldest first, and says whether the count is reached.
func (w *writer) drain() (full bool, err error) {
	lanes := *w.c.lanes.Load()
	var budget uint64
	for _, l := range lanes {
		budget += uint64(len(l.ring.buf)) // or a lane that is faster than the writer would keep it here
	}
	for taken := uint64(0); taken < budget; {
		var first *laneOf
		var oldest record
		var size int
		for _, l := range lanes {
			if r, n, ok := l.ring.peek(); ok && (first == nil || r.time < oldest.time) {
				first, oldest, size = l, r, n
			}
		}
		if first == nil {
			return false, nil
		}
		if err := w.write(first, &oldest); err != nil {
			return false, err
		}
		first.ring.release(size)
		taken += uint64(size)
		if w.c.o.Count > 0 && w.total() >= w.c.o.Count {
			return true, nil
		}
	}
	return false, nil
}

func (w *writer) write(l *laneOf, r *record) error {
	info := gopacket.CaptureInfo{Timestamp: time.Unix(0, r.time), CaptureLength: len(r.data), Length: r.length, InterfaceIndex: w.id[r.side]}
	options := pcapgo.NgPacketOptions{Flags: &pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionOutbound}}
	if r.in {
		options.Flags.Direction = pcapgo.NgEpbFlagDirectionInbound
	}
	if _, number, ok := strings.Cut(l.name, "/"); ok {
		if n, err := strconv.ParseUint(number, 10, 32); err == nil {
			queue := uint32(n)
			options.Queue = &queue
		}
	}
	if r.made && len(r.data) == r.length {
		finish(r.data)
	}
	switch {
	case r.drop == packet.PolicyDenied:
		options.Comments = []string{fmt.Sprintf("drop %s: %s", r.drop, l.steps[r.step])}
	case r.drop != packet.Alive:
		options.Comments = []string{fmt.Sprintf("drop %s at %s of lane %s", r.drop, l.steps[r.step], l.name)}
	}
	w.written[r.side]++
	w.dirty = true
	return w.ng.WritePacketWithOptions(info, r.data, options)
}

// end writes what each interface has seen and lost.
func (w *writer) end() error {
	w.dirty = true
	for s := range sides {
		if !w.c.want[s] {
			continue
		}
		now, lost := time.Now(), w.c.lost(s)
		if err := w.ng.WriteInterfaceStats(w.id[s], pcapgo.NgInterfaceStatistics{LastUpdate: now, StartTime: w.started, EndTime: now,
			PacketsReceived: w.written[s] + lost, PacketsDropped: lost}); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) flush(then func() error) error {
	if !w.dirty {
		return nil
	}
	w.dirty = false
	if err := w.ng.Flush(); err != nil {
		return err
	}
	return then()
}

func (w *writer) total() (n uint64) {
	for _, k := range w.written {
		n += k
	}
	return n
}

func (w *writer) summary() (s Summary) {
	s.Frames = w.total()
	for k := range sides {
		s.Lost += w.c.lost(k)
	}
	return s
}
