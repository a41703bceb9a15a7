package api_test

import (
	"reflect"
	"testing"

	"weft/api"
)

func TestSince(t *testing.T) {
	before := api.Lane{Name: "out/0", Turns: 10, Received: 100, Sent: 90, Waited: 500, Age: 1000,
		Stages: []api.Stage{{Name: "route", Calls: 10, Packets: 100, Timed: 50, Nanos: 700, Drops: map[string]uint64{"no-route": 10}}}}
	after := api.Lane{Name: "out/0", Turns: 12, Received: 130, Sent: 117, Waited: 750, Age: 2000,
		Stages: []api.Stage{{Name: "route", Calls: 12, Packets: 130, Timed: 60, Nanos: 900, Drops: map[string]uint64{"no-route": 10, "not-ip": 3}}}}
	want := api.Lane{Name: "out/0", Turns: 2, Received: 30, Sent: 27, Waited: 250, Age: 1000,
		Stages: []api.Stage{{Name: "route", Calls: 2, Packets: 30, Timed: 10, Nanos: 200, Drops: map[string]uint64{"not-ip": 3}}}}
	fresh := api.Lane{Name: "in/0", Turns: 1, Age: 5, Stages: []api.Stage{}}
	got := api.Since([]api.Lane{before}, []api.Lane{after, fresh})
	if !reflect.DeepEqual(got, []api.Lane{want, fresh}) {
		t.Errorf("got %+v", got)
	}
	if got[0].Busy() != 0.75 {
		t.Errorf("busy %v", got[0].Busy())
	}
	// A lane that began anew in between counts from its beginning.
	if got := api.Since([]api.Lane{after}, []api.Lane{before}); !reflect.DeepEqual(got, []api.Lane{before}) {
		t.Errorf("a restarted lane: %+v", got)
	}
	if b := (api.Lane{}).Busy(); b != 0 {
		t.Errorf("a lane without age is busy %v", b)
	}
}
