package perf

import (
	"encoding/json"
	"testing"

	"weft/perf/contender"
	"weft/perf/probe"
)

func lane(node, name string, received, sent uint64, drops map[string]uint64) contender.Lane {
	return contender.Lane{Node: node, Name: name, Received: received, Sent: sent, Drops: drops}
}

func TestLanesSince(t *testing.T) {
	before := []contender.Lane{lane("a", "out/0", 10, 8, map[string]uint64{"no-route": 2}), lane("b", "in/0", 5, 5, nil)}
	now := []contender.Lane{lane("a", "out/0", 30, 25, map[string]uint64{"no-route": 2, "too-big": 3}), lane("b", "in/0", 5, 5, nil)}
	diff, err := lanesSince(now, before)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff[0]; d.Received != 20 || d.Sent != 17 || len(d.Drops) != 1 || d.Drops["too-big"] != 3 {
		t.Errorf("difference %+v", d)
	}
	if d := diff[1]; d.Received != 0 || d.Sent != 0 || len(d.Drops) != 0 {
		t.Errorf("an idle lane counted %+v", d)
	}
	if _, err := lanesSince(before, now); err == nil {
		t.Error("a lane that counts backwards was believed")
	}
	if _, err := lanesSince(now, before[:1]); err == nil {
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
				lanes: []contender.Lane{
					lane("a", "out/0", 100, 97, map[string]uint64{"no-route": 3}),
					lane("b", "in/0", 95, 95, nil),
				},
				kernel: map[string]uint64{"socket-overflow": 2, "veth": 5},
				sent:   103,
			})
		}
		return list
	}
	rows := balances("x", udp, samples(0))
	if len(rows) != 3 {
		t.Fatalf("%d accounts, want two lanes and the path", len(rows))
	}
	for _, r := range rows {
		if !r.OK {
			t.Errorf("an account that adds up is not ok: %s", text(t, r))
		}
	}
	if r := rows[0]; r.Received != 200 || r.Sent != 194 || r.Drops["no-route"] != 6 {
		t.Errorf("lane %s", text(t, r))
	}
	if r := rows[2]; r.Generated != 200 || r.Delivered != 180 || r.LaneDrops["no-route"] != 6 || r.KernelDrops["veth"] != 10 {
		t.Errorf("path %s", text(t, r))
	}
	if r := balances("x", udp, samples(4))[2]; r.OK || r.Unaccounted != 8 {
		t.Errorf("lost packets went unnoticed: %s", text(t, r))
	}

	// Six packets of others were sent, so six drops more than losses are explained, and seven not.
	for n, ok := range map[uint64]bool{6: true, 7: false} {
		more := samples(0)
		more[0].kernel["veth"] += n
		if r := balances("x", udp, more)[2]; r.OK != ok || r.Unaccounted != -int64(n) {
			t.Errorf("%d drops too many: %s", n, text(t, r))
		}
	}

	broken := samples(0)
	broken[1].lanes[1].Sent--
	if r := balances("x", udp, broken)[1]; r.OK {
		t.Errorf("a lane that lost a packet is ok: %s", text(t, r))
	}

	tcp, err := probe.Parse("tcp-stream")
	if err != nil {
		t.Fatal(err)
	}
	stream := samples(0)
	for _, s := range stream {
		s.result = probe.Result{Bytes: 1}
	}
	if rows := balances("x", tcp, stream); len(rows) != 2 {
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
