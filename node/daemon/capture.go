package daemon

import (
	"context"
	"fmt"
	"io"

	"weft/api"
	"weft/insight/capture"
	"weft/insight/filter"
	"weft/node/policies"
	"weft/packet"
)

// maxCaptures bounds the memory and the time that captures take: each has rings of its own.
const maxCaptures = 4

// Capture writes what passes the lanes to w, as api.Daemon says, until the daemon ends too.
func (d *Daemon) Capture(ctx context.Context, r api.CaptureRequest, w io.Writer, flush func() error) (api.CaptureSummary, error) {
	refuse := func(code, format string, args ...any) (api.CaptureSummary, error) {
		return api.CaptureSummary{}, &api.Error{Code: code, Text: fmt.Sprintf(format, args...)}
	}
	b := d.backend.Lanes()
	if b == nil {
		return refuse(api.CodeUnsupported, "in mode %s the kernel forwards, and tcpdump sees all packets: run tcpdump on the underlay and the pods' devices", d.cfg.Mode.Name)
	}
	f, err := filter.Parse(r.Filter)
	if err != nil {
		return refuse(api.CodeInvalid, "%v", err)
	}
	if r.SnapLen < 0 || r.SnapLen > capture.MaxSnapLen {
		return refuse(api.CodeInvalid, "snaplen %d: write 1 to %d bytes, or 0 for whole packets", r.SnapLen, capture.MaxSnapLen)
	}
	if d.captures.Add(1) > maxCaptures {
		d.captures.Add(-1)
		return refuse(api.CodeUnavailable, "%d captures are under way: end one first", maxCaptures)
	}
	defer d.captures.Add(-1)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.life, cancel)()
	c := capture.New(capture.Options{Inside: r.Inside, Outside: r.Outside, Drops: r.Drops, Filter: f, SnapLen: r.SnapLen, Count: r.Count,
		Ends: b.Tunnel, Node: d.cfg.Node.Name, Version: d.version})
	stop := b.Observe(c)
	defer stop()
	if d.policies != nil {
		defer d.policies.Watch(func(p policies.DeniedPacket) { c.Denied(p.In, p.Packet, packet.TotalLen(p.Packet), p.Why) })()
	}
	s, err := c.Run(ctx, w, flush)
	return api.CaptureSummary(s), err
}
