package hostnet

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"weft/internal/nettest"
)

// TestRoutesOfNewLinks: a pod attached between the look at the links and the look at the routes keeps its route.
func TestRoutesOfNewLinks(t *testing.T) {
	ns, far := nettest.New(t), nettest.New(t)
	nettest.Pair(t, nettest.End{NS: ns, Dev: "weft0123456789a"}, nettest.End{NS: far, Dev: "eth0"}, 1500)
	ns.MustRun(t, "ip", "route", "add", "10.0.0.2/32", "dev", "weft0123456789a", "proto", "87")
	ns.Do(func() {
		h, err := New(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if list, err := dumpRoutes(h.strict, map[int]string{1: "lo"}); err != nil || len(list) != 0 {
			t.Errorf("over a link made since: %v, %v", list, err)
		}
		link, err := h.rt.LinkByName("weft0123456789a")
		if err != nil {
			t.Fatal(err)
		}
		if list, err := dumpRoutes(h.strict, map[int]string{link.Attrs().Index: "weft0123456789a"}); err != nil || len(list) != 1 {
			t.Errorf("over a known link: %v, %v", list, err)
		}
	})
}

// TestDocumentsNameTheGuard: where documents tell the metric of the guard, it is the one.
func TestDocumentsNameTheGuard(t *testing.T) {
	seen := 0
	for _, file := range []string{"../docs/adr/0001-tun-is-not-persistent.md", "../docs/reference.md", "../README.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, number := range regexp.MustCompile(`\b42949\d{5}\b`).FindAllString(string(text), -1) {
			if seen++; number != strconv.Itoa(GuardMetric) {
				t.Errorf("%s says metric %s, it is %d", file, number, GuardMetric)
			}
		}
	}
	if seen == 0 {
		t.Error("no document tells the metric: nothing was tested")
	}
}
