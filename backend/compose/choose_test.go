package compose

import (
	"testing"
	"time"

	"weft/backend/status"
	"weft/control"
)

// TestChoose is a story of two ways, told by what is known of each at a time: what is chosen, and in which state the ways are.
func TestChoose(t *testing.T) {
	const up, down, assumed, heldState, unfit = status.StateUp, status.StateDown, status.StateAssumed, status.StateHeld, status.StateUnfit
	fast, slow := control.Way{Name: control.WayVXLAN, Port: 4789}, control.Way{Name: control.WayVXLAN, Port: 4788}
	start := time.Unix(1000, 0)
	upSince := func(s int) Link { return Link{State: up, Since: start.Add(time.Duration(s) * time.Second)} }
	downSince := func(s int) Link {
		return Link{State: down, Reason: "3 probes lost", Since: start.Add(time.Duration(s) * time.Second)}
	}
	const none = ""
	var c choice
	c.chosen = -1
	for _, step := range []struct {
		at           int // seconds
		fast, slow   Link
		unfit        string // of the fast one
		chosen       control.Way
		fastS, slow2 string
	}{
		{0, Link{}, Link{}, none, fast, assumed, assumed},
		{1, upSince(1), Link{}, none, fast, up, assumed},
		{2, downSince(2), Link{}, none, slow, down, assumed},          // the first failure
		{3, upSince(3), Link{}, none, slow, heldState, assumed},       // it has to work for 5 s
		{7, upSince(3), Link{}, none, slow, heldState, assumed},       //
		{8, upSince(3), Link{}, none, fast, up, assumed},              //
		{9, downSince(9), Link{}, none, slow, down, assumed},          // the second: 10 s
		{10, upSince(10), Link{}, none, slow, heldState, assumed},     //
		{15, downSince(15), Link{}, none, slow, down, assumed},        // the third, before it was used again: 20 s
		{16, upSince(16), Link{}, none, slow, heldState, assumed},     //
		{35, upSince(16), Link{}, none, slow, heldState, assumed},     //
		{36, upSince(16), upSince(36), none, fast, up, up},            //
		{37, upSince(16), downSince(37), none, fast, up, down},        // a standby fails: nothing happens
		{38, downSince(38), downSince(37), none, fast, down, down},    // all are down: what was used stays
		{39, downSince(38), upSince(39), none, fast, down, heldState}, // nothing is usable yet
		{44, downSince(38), upSince(39), none, slow, down, up},        //
		{50, Link{}, upSince(39), "it is behind a router", slow, unfit, up},
		{51, Link{}, upSince(39), none, fast, assumed, up},            // facts of the kernel are not damped
		{52, upSince(52), upSince(39), none, slow, heldState, up},     //
		{999, upSince(52), upSince(39), none, fast, up, up},           //
		{1000, downSince(1000), upSince(39), none, slow, down, up},    // after ten quiet minutes it counts from the start
		{1001, upSince(1001), upSince(39), none, slow, heldState, up}, //
		{1006, upSince(1001), upSince(39), none, fast, up, up},        //
	} {
		offers := []offer{{way: fast, mode: "vxlan", link: step.fast, unfit: step.unfit}, {way: slow, mode: "tun", link: step.slow}}
		before := c
		c = choose(offers, c, start.Add(time.Duration(step.at)*time.Second))
		if c.chosen < 0 || c.candidates[c.chosen].way != step.chosen || c.candidates[0].state != step.fastS || c.candidates[1].state != step.slow2 {
			t.Fatalf("second %d: %+v", step.at, c)
		}
		if before.chosen >= 0 && before.candidates[0].state == c.candidates[0].state && !before.candidates[0].since.Equal(c.candidates[0].since) {
			t.Errorf("second %d: the state is of %v", step.at, c.candidates[0].since)
		}
	}
	// A peer that starts: what does not work before it ever did is no failure.
	c = choice{chosen: -1}
	for i, step := range []struct {
		link  Link
		state string
	}{{Link{}, assumed}, {downSince(1), down}, {upSince(2), up}, {downSince(3), down}, {upSince(4), heldState}} {
		c = choose([]offer{{way: fast, link: step.link}}, c, start.Add(time.Duration(i)*time.Second))
		if c.candidates[0].state != step.state {
			t.Errorf("step %d: %+v", i, c.candidates[0])
		}
	}
	if c := choose([]offer{{way: fast, unfit: "no"}, {way: slow, unfit: "no"}}, c, start); c.chosen != -1 {
		t.Errorf("chosen though it does not fit: %+v", c)
	}
	if held(1) != 5*time.Second || held(2) != 10*time.Second || held(100) != 5*time.Minute {
		t.Error("holds")
	}
}
