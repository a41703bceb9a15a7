package netns_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestFault slows a stage and compares with a run without: `compare` finds it, and names the stage. With WEFT_TEST_LONG=1 it
// is 100 ns a packet, which needs a machine that does nothing else; otherwise 10 µs, which a busy one does not hide.
func TestFault(t *testing.T) {
	fault, duration, repeat := "vxlan:10us", "150ms", "5"
	if os.Getenv("WEFT_TEST_LONG") != "" {
		fault, duration, repeat = "vxlan:100ns", "500ms", "6"
	}
	run := func(args ...string) string {
		l := start(t, append([]string{"--contenders", "bare,tun", "--tests", "udp-stream:size=256:rate=5e7",
			"--duration", duration, "--repeat", repeat, "--warmup", "0", "--json", "r.json"}, args...)...)
		if code := l.end(); code != 0 {
			t.Fatalf("exit code %d:\n%s\n%s", code, l.err.Bytes(), l.out.Bytes())
		}
		return filepath.Join(l.Dir, "r.json")
	}
	out, err := exec.Command(weft, "lab", "compare", run(), run("--fault", fault), "-o", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var found struct {
		Fingerprint []struct{ Name, B string }
		Stages      []struct {
			Node, Lane, Stage, Verdict string
			Shift                      float64
		}
	}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	if f := found.Fingerprint; len(f) != 1 || f[0].Name != "fault" || f[0].B != fault {
		t.Errorf("what the runs do not share: %+v", f)
	}
	named := 0
	for _, s := range found.Stages {
		carries := s.Node == "a" && s.Lane == "out/0" || s.Node == "b" && s.Lane == "in/0"
		if !carries || s.Stage != "vxlan" {
			continue
		}
		named++
		if s.Verdict != "worse" || s.Shift <= 0 {
			t.Errorf("node %s, %s: %+v", s.Node, s.Lane, s)
		}
	}
	if named != 2 {
		t.Errorf("the ledger has the slow stage in %d of the 2 lanes that carry the stream:\n%s", named, out)
	}
}

// TestFaultOfNoStage: where no stage has the name, the contender says which there are; where the kernel forwards, nothing is slowed.
func TestFaultOfNoStage(t *testing.T) {
	l := start(t, "--contenders", "vxlan,udp", "--tests", "udp-rr", "--duration", "100ms", "--repeat", "1", "--warmup", "0", "--fault", "vxlan:1us", "--json", "r.json")
	if code := l.end(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	r := read(t, filepath.Join(l.Dir, "r.json"))
	if len(r.Failed) != 1 || r.Failed[0].Contender != "udp" || len(r.Results) == 0 || r.Results[0].Contender != "vxlan" || r.Settings.Fault != "vxlan:1us" {
		t.Errorf("failed %+v; %d rows; fault %q", r.Failed, len(r.Results), r.Settings.Fault)
	} else if want := `no stage "vxlan" for a fault: there are route, ipudp`; !strings.Contains(r.Failed[0].Reason, want) {
		t.Errorf("udp failed by %q, want %q in it", r.Failed[0].Reason, want)
	}
}
