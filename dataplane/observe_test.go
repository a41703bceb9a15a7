package dataplane

import (
	"fmt"
	"reflect"
	"testing"

	"weft/packet"
)

// notes writes down what an observer is shown.
type notes struct{ seen []string }

func (n *notes) Observe(at *Point, b *packet.Batch) {
	for i := range b.Packets() {
		p := &b.Packets()[i]
		inner := -1
		if at.Inner >= 0 && p.Len() > at.Inner {
			inner = int(p.Bytes()[at.Inner] >> 4)
		}
		n.seen = append(n.seen, fmt.Sprintf("%s %d/%d %s %s ip%d wire=%v", at.Lane, at.Row, at.Rows, at.Name, p.Drop, inner, at.Wire))
	}
}

// TestObserver: an attached observer is shown every packet behind every step, the dying one with its reason; a detached one nothing.
func TestObserver(t *testing.T) {
	r, _ := twoNodes()
	good, lost := ip4("10.244.1.5", "10.244.2.5", 100), ip4("10.244.1.5", "10.99.0.1", 100)
	from := &feed{batches: [][][]byte{{lost, good}, {good}}}
	l := NewLane(LaneConfig{Name: "out/0", Direction: Out, Inside: End{Port: "a", Queue: from}, Forward: r,
		Ways: []Way{{Wrap: []packet.Stage{prefixer{'v', 22}}, Outside: End{Port: "b", Queue: &feed{refuse: map[int]packet.Drop{0: packet.QueueFull}}}}}, Room: 2000})
	n := &notes{}
	l.Attach(n)
	if err := l.Turn(); err != nil {
		t.Fatal(err)
	}
	l.Detach(n)
	if err := l.Turn(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"out/0 0/4 recv a alive ip4 wire=false", "out/0 0/4 recv a alive ip4 wire=false",
		"out/0 1/4 route no-route ip4 wire=false", "out/0 1/4 route alive ip4 wire=false",
		"out/0 2/4 v alive ip-1 wire=true",
		"out/0 3/4 send b queue-full ip-1 wire=false",
	}
	if !reflect.DeepEqual(n.seen, want) {
		t.Errorf("seen:\n%q\nwant:\n%q", n.seen, want)
	}
}

// TestObserverIn: on the way in the inner packet is seen once all stages but route have unwrapped it.
func TestObserverIn(t *testing.T) {
	wrapped := append(append([]byte("ssssssssssssssss"), "vvvvvvvvvvvvvvvvvvvvvv"...), ip4("10.244.2.5", "10.244.1.5", 100)...)
	r, _ := twoNodes()
	l := NewLane(LaneConfig{Name: "in/0", Direction: In, Inside: End{Port: "a", Queue: &feed{}}, Forward: r,
		Ways: []Way{{Wrap: []packet.Stage{prefixer{'v', 22}, prefixer{'s', 16}}, Outside: End{Port: "b", Queue: &feed{batches: [][][]byte{{wrapped}}}}}}, Room: 2000})
	n := &notes{}
	l.Attach(n)
	if err := l.Turn(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"in/0 0/5 recv b alive ip-1 wire=true", "in/0 1/5 s alive ip-1 wire=false", "in/0 2/5 v alive ip4 wire=false",
		"in/0 3/5 route unknown-peer ip4 wire=false",
	}
	if !reflect.DeepEqual(n.seen, want) {
		t.Errorf("seen:\n%q\nwant:\n%q", n.seen, want)
	}
}
