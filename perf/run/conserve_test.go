package run

import (
	"encoding/json"
	"testing"

	"weft/perf/probe"
	"weft/perf/site"
)

func lane(node, name string, received, sent uint64, drops map[string]uint64) site.Lane {
	return site.Lane{Node: node, Name: name, Received: received, Sent: sent, Drops: drops}
}

func TestLanesSince(t *testing.T) {
	before := []site.Lane{lane("a", "out/0", 10, 8, map[string]uint64{"no-route": 2}), lane("b", "in/0", 5, 5, nil)}
	now := []site.Lane{lane("a", "out/0", 30, 25, map[string]uint64{"no-route": 2, "too-big": 3}), lane("b", "in/0", 5, 5, nil)}
	diff, err := site.LanesSince(now, before)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff[0]; d.Received != 20 || d.Sent != 17 || len(d.Drops) != 1 || d.Drops["too-big"] != 3 {
		t.Errorf("difference %+v", d)
	}
	if d := diff[1]; d.Received != 0 || d.Sent != 0 || len(d.Drops) != 0 {
		t.Errorf("an idle lane counted %+v", d)
	}
	if _, err := site.LanesSince(before, now); err == nil {
		t.Error("a lane that counts backwards was believed")
	}
	if _, err := site.LanesSince(now, before[:1]); err == nil {
		t.Error("a new lane was believed")
	}
}

func TestBalances(t *testing.T) {
	udp, err := probe.Parse("udp-rate")
	if err != nil {
		t.Fatal(err)
	}
	samples := func(lost uint64) []*sample {
		var list []*sample
		for range 2 {
			list = append(list, &sample{
				result: probe.Result{Generated: 100, Delivered: 90 - lost},
				moved: site.Moved{
					Lanes: []site.Lane{
						lane("a", "out/0", 100, 97, map[string]uint64{"too-big": 3}),
						lane("b", "in/0", 95, 95, nil),
					},
					Kernel:   map[string]uint64{"socket-overflow": 2, "veth": 5},
					Segments: site.Segments{Sent: 10, Received: 10},
				},
			})
		}
		return list
	}
	x := site.About{Contender: "x"}
	rows := balances(x, udp, samples(0))
	if len(rows) != 3 {
		t.Fatalf("%d accounts, want two lanes and the path", len(rows))
	}
	for _, r := range rows {
		if !r.OK {
			t.Errorf("an account that adds up is not ok: %s", text(t, r))
		}
	}
	if r := rows[0]; r.Received != 200 || r.Sent != 194 || r.Drops["too-big"] != 6 {
		t.Errorf("lane %s", text(t, r))
	}
	if r := rows[2]; r.Generated != 200 || r.Delivered != 180 || r.LaneDrops["too-big"] != 6 || r.KernelDrops["veth"] != 10 {
		t.Errorf("path %s", text(t, r))
	}
	if r := balances(x, udp, samples(4))[2]; r.OK || r.Unaccounted != 8 {
		t.Errorf("lost packets went unnoticed: %s", text(t, r))
	}

	// What arrived, though not as it was sent, is not lost.
	wrong := samples(4)
	for _, s := range wrong {
		s.result.CorruptPackets = 4
	}
	if r := balances(x, udp, wrong)[2]; !r.OK || r.Corrupt != 8 || r.Unaccounted != 0 {
		t.Errorf("corrupt packets are taken for lost ones: %s", text(t, r))
	}

	// More drops than losses: only those that were somebody else's are explained.
	more := samples(0)
	more[0].moved.Kernel["veth"] += 6
	if r := balances(x, udp, more)[2]; r.OK || r.Unaccounted != -6 {
		t.Errorf("drops of nothing went unnoticed: %s", text(t, r))
	}
	more[0].moved.Segments.Sent += 6
	if r := balances(x, udp, more)[2]; !r.OK || r.Unaccounted != 0 || r.OtherDrops != 6 {
		t.Errorf("the control connection's losses are not explained: %s", text(t, r))
	}
	more[0].moved.Lanes[0].Drops["no-route"] = 2
	more[0].moved.Multicast = 5
	if r := balances(x, udp, more)[2]; !r.OK || r.Unaccounted != 0 || r.OtherDrops != 8 {
		t.Errorf("what the nodes sent of themselves is not explained: %s", text(t, r))
	}

	more[0].moved.Kernel["device"] += 2
	if r := balances(x, udp, more)[2]; !r.OK || r.Unaccounted != 0 || r.OtherDrops != 10 {
		t.Errorf("what a Linux vxlan device dropped of it is not explained: %s", text(t, r))
	}

	// A loss of the control connection must not hide one of the generators.
	hidden := samples(4)
	hidden[0].moved.Segments.Sent += 8
	if r := balances(x, udp, hidden)[2]; r.OK || r.Unaccounted != 16 {
		t.Errorf("lost packets hide: %s", text(t, r))
	}

	// What the kernel drops as one packet may be many: 5 + 5 died at a veth, up to 63 more in each.
	for _, c := range []struct {
		x    site.About
		gso  float64
		lost uint64
		ok   bool
	}{{x, 0, 1, false}, {x, 1, 10 * 63 / 2, true}, {site.About{Contender: "x", Super: true}, 0, 10 * 63 / 2, true}, {x, 1, 10*63/2 + 1, false}} {
		super := probe.Selection{Test: udp.Test, Params: probe.Params{"gso": c.gso}}
		grown := samples(0)
		for _, s := range grown {
			s.result.Generated += c.lost
		}
		if r := balances(c.x, super, grown)[2]; r.OK != c.ok || r.Unaccounted != 2*int64(c.lost) {
			t.Errorf("%+v: %s", c, text(t, r))
		}
	}

	broken := samples(0)
	broken[1].moved.Lanes[1].Sent--
	if r := balances(x, udp, broken)[1]; r.OK {
		t.Errorf("a lane that lost a packet is ok: %s", text(t, r))
	}

	// Where others' packets are in the counters, nobody says that an account from end to end adds up.
	open := samples(4)
	open[1].moved.Open = true
	if rows := balances(x, udp, open); len(rows) != 2 {
		t.Errorf("%d accounts of an open place, want those of the two lanes", len(rows))
	}

	tcp, err := probe.Parse("tcp-stream")
	if err != nil {
		t.Fatal(err)
	}
	stream := samples(0)
	for _, s := range stream {
		s.result = probe.Result{Bytes: 1}
	}
	if rows := balances(x, tcp, stream); len(rows) != 2 {
		t.Errorf("%d accounts of a TCP test, want those of the two lanes", len(rows))
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
