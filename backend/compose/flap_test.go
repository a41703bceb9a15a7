package compose

import (
	"testing"
	"time"

	"weft/backend/status"
	"weft/control"
)

// TestFlapping: a way that fails again and again is used less and less often.
func TestFlapping(t *testing.T) {
	fast, slow := control.Way{Name: control.WayVXLAN, Port: 4789}, control.Way{Name: control.WayVXLAN, Port: 4788}
	const step, period, times = 200 * time.Millisecond, 10 * time.Second, 20
	c, link, changes := choice{chosen: none}, Link{}, 0
	for now := time.Unix(1000, 0); now.Before(time.Unix(1000, 0).Add(times * period)); now = now.Add(step) {
		state := status.StateUp // it works for seven seconds of ten
		if now.Sub(time.Unix(1000, 0))%period >= 7*time.Second {
			state = status.StateDown
		}
		if state != link.State {
			link = Link{State: state, Reason: "3 probes lost", Since: now}
		}
		next := choose([]offer{{way: fast, mode: "vxlan", link: link}, {way: slow, mode: "tun-gso"}}, c, now)
		if c.chosen != none && next.way() != c.way() {
			changes++
		}
		c = next
	}
	t.Logf("%d failures, %d changes; without damping there were %d", times, changes, 2*times-1)
	if changes < 2 || changes > 4 { // away, back after 5 s, away; then 10 s without a loss there are none
		t.Errorf("%d changes", changes)
	}
}
