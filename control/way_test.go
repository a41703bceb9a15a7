package control

import (
	"strings"
	"testing"
)

func TestWay(t *testing.T) {
	for text, want := range map[string]Way{
		"direct": {Name: WayDirect}, "vxlan:4789": {WayVXLAN, 4789}, "sealed-frames:8473": {WaySealedFrames, 8473},
		// What a later version writes is read, as something that this one does not know.
		"relay/2:4700": {"relay/2", 4700}, "vxlan:04789": {Name: "vxlan:04789"}, "vxlan:65536": {Name: "vxlan:65536"}, "vxlan:0": {Name: "vxlan:0"}, "": {},
	} {
		var w Way
		if err := w.UnmarshalText([]byte(text)); err != nil || w != want {
			t.Errorf("%q is %+v, %v, want %+v", text, w, err, want)
		}
		if w.String() != text {
			t.Errorf("%q comes back as %q", text, w)
		}
	}
	for text, want := range map[string]string{"vxlan": "has no port", "direct:1": "has a port", "vlxan:4789": "is not a way", "vxlan:x": "is not a way", "": "is not a way"} {
		if _, err := ParseWay(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for w, want := range map[Way]bool{{Name: WayDirect}: false, {WayVXLAN, 1}: false, {WaySealed, 1}: true, {WaySealedIPUDP, 1}: true, {Name: "sealedx"}: false} {
		if w.Sealed() != want {
			t.Errorf("%v sealed: %v", w, w.Sealed())
		}
	}
	if w, err := ParseWay("ipudp:8285"); err != nil || w != (Way{WayIPUDP, 8285}) {
		t.Errorf("%v, %v", w, err)
	}
}

func FuzzWay(f *testing.F) {
	f.Add("vxlan:4789")
	f.Add("direct")
	f.Add("a:b:9")
	f.Fuzz(func(t *testing.T, text string) {
		var w, again Way
		if w.UnmarshalText([]byte(text)) != nil || again.UnmarshalText([]byte(w.String())) != nil || w != again || w.String() != text {
			t.Errorf("%q is %+v, and %q is %+v", text, w, w, again)
		}
	})
}
