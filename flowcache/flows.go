package flowcache

import (
	"cmp"
	"slices"

	"weft/backend/status"
	"weft/bpf"
)

// Flows lists the flows of pods that were seen or are cached, sorted: those that are not with the reason.
func (c *Cache) Flows() []status.Flow {
	c.mu.Lock()
	admitted := map[bpf.FlowKey]flow{}
	for k, f := range c.flows {
		admitted[k] = f
	}
	c.mu.Unlock()
	clock := now()
	var list []status.Flow
	known := map[bpf.FlowKey]bool{} // of seen
	for k, f := range admitted {
		var o bpf.FlowOut
		var i bpf.FlowIn
		if c.objects.Outs.Lookup(&k, &o) != nil || c.objects.Ins.Lookup(&f.back, &i) != nil {
			continue // it has just ended
		}
		list = append(list, status.Flow{Protocol: f.tuple.Protocol, Local: f.tuple.Src, Remote: f.tuple.Dst, Peer: f.peer, Cached: true, Since: f.began,
			TxPackets: o.Packets, TxBytes: o.Bytes, RxPackets: i.Packets, RxBytes: i.Bytes, Idle: int64(clock - min(clock, max(o.Used, i.Used)))})
		k.Where = 0
		known[k] = true
	}
	var k bpf.FlowKey
	var s bpf.FlowSighting
	for all := c.objects.Seen.Iterate(); all.Next(&k, &s); {
		if known[k] {
			continue
		}
		t := tuple(&k)
		f := status.Flow{Protocol: t.Protocol, Local: t.Src, Remote: t.Dst}
		c.mu.Lock()
		p := c.forwarding
		f.Reason = c.closed(&s)
		c.mu.Unlock()
		if p != nil {
			if peer := p.owner(t.Dst.Addr()); peer != nil {
				f.Peer = peer.Node
			} else {
				f.Reason = t.Dst.Addr().String() + " is no peer's"
			}
			if f.Reason == "" {
				_, f.Reason = judge(p, c.o, &k, &s)
			}
			if f.Reason == "" {
				_, f.Reason = c.tracked(t)
			}
		}
		f.Reason = cmp.Or(f.Reason, "it is about to be")
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b status.Flow) int {
		return cmp.Or(a.Local.Compare(b.Local), a.Remote.Compare(b.Remote), cmp.Compare(a.Protocol, b.Protocol))
	})
	return list
}
