package netns_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/testbed"
)

// patience bounds waits for a condition; it measures nothing.
const patience = nettest.Patience

// weft is the binary under test: the lab runs itself as daemons and generators.
var weft string

func TestMain(m *testing.M) {
	if port := os.Getenv(sinkVariable); port != "" {
		fmt.Fprintln(os.Stderr, sink(port))
		os.Exit(1)
	}
	os.Exit(nettest.WithWeft(func(path string) int {
		weft = path
		return m.Run()
	}))
}

// lab is a running `weft lab run`.
type lab struct {
	*exec.Cmd
	t        *testing.T
	out, err text
	done     chan struct{}
}

// text is what a process has printed, to be read while it runs.
type text struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *text) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *text) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (w *text) Bytes() []byte { return []byte(w.String()) }

func start(t *testing.T, args ...string) *lab {
	t.Helper()
	l := command(t, args...)
	l.begin()
	return l
}

// command is a lab that is not running yet.
func command(t *testing.T, args ...string) *lab {
	t.Helper()
	nettest.RequireRoot(t)
	nettest.RequireKernel(t, kernel.Veth)
	l := &lab{t: t, Cmd: exec.Command(weft, append([]string{"lab", "run"}, args...)...), done: make(chan struct{})}
	l.Dir = t.TempDir()
	l.Stdout, l.Stderr = &l.out, &l.err
	return l
}

func (l *lab) begin() {
	l.t.Helper()
	if err := l.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		_ = l.Wait() // ProcessState says it
		close(l.done)
	}()
	l.t.Cleanup(func() {
		_ = l.Process.Signal(syscall.SIGTERM)
		<-l.done
	})
}

// end waits for the lab's end and returns its exit code. How long a whole run takes is the machine's affair: what the test binary has
// left bounds it.
func (l *lab) end() int {
	l.t.Helper()
	var most <-chan time.Time // never, without a deadline
	if deadline, ok := l.t.Deadline(); ok {
		most = time.After(time.Until(deadline) - 10*time.Second)
	}
	select {
	case <-l.done:
	case <-most:
		l.t.Fatalf("the lab does not end:\n%s", l.err.Bytes())
	}
	return l.ProcessState.ExitCode()
}

// ran waits for the lab's end and says that all of it was carried out. On a machine that does other things a contender may have no answer in a
// search: then the lab says that, and ends with 1.
func (l *lab) ran() {
	l.t.Helper()
	code := l.end()
	if code != 0 && !(code == 1 && strings.Contains(l.err.String(), "has an answer: there is no median")) {
		l.t.Fatalf("exit code %d:\n%s\n%s", code, l.err.Bytes(), l.out.Bytes())
	}
}

// traces lists what there is of the lab in the machine.
func (l *lab) traces() testbed.Leftovers {
	l.t.Helper()
	left, err := testbed.Find(func(pid int) bool { return pid == l.Process.Pid })
	if err != nil {
		l.t.Fatal(err)
	}
	return left
}

// busy waits until the lab measures: a generator runs beside its server and the daemons.
func (l *lab) busy(processes int) testbed.Leftovers {
	l.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if left := l.traces(); len(left.Processes) >= processes {
			return left
		}
		select {
		case <-l.done:
			l.t.Fatalf("the lab ended early:\n%s", l.err.Bytes())
		default:
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("the lab does not measure: %+v\n%s", l.traces(), l.err.Bytes())
		}
	}
}

func gone(t *testing.T, pids []int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for _, pid := range pids {
		for !testbed.Dead(pid) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d lives on", pid)
			}
			time.Sleep(10 * time.Millisecond) // between looks at a condition
		}
	}
}

// long is a run that lasts until something ends it: one contender that needs no daemon and one
// that has two, and so five processes while it measures.
var long = []string{"--contenders", "bare,tun", "--tests", "tcp-stream", "--duration", "10s", "--repeat", "100", "--json", "r.json"}

const longProcesses = 5

func TestInterrupted(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			l := start(t, long...)
			before := l.busy(longProcesses)
			if len(before.Namespaces) != 8 || len(before.Dirs) != 1 {
				t.Errorf("a running lab has %+v", before)
			}
			if err := l.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if code := l.end(); code != 130 {
				t.Errorf("exit code %d, want 130:\n%s", code, l.err.Bytes())
			}
			if left := l.traces(); !left.Empty() {
				t.Errorf("left behind: %+v", left)
			}
			gone(t, before.Processes)
		})
	}
}

// TestKilled kills a lab the hard way: what it started must die with it, and `weft lab clean` must
// remove the rest, and nothing of a lab that runs.
func TestKilled(t *testing.T) {
	other := start(t, "--contenders", "bare", "--tests", "tcp-stream", "--duration", "10s", "--repeat", "100", "--json", "r.json")
	others := other.busy(2)
	l := start(t, long...)
	before := l.busy(longProcesses)
	if err := l.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	l.end()
	gone(t, before.Processes)
	if left := l.traces(); len(left.Namespaces) != len(before.Namespaces) || len(left.Dirs) != 1 {
		t.Errorf("a killed lab leaves %+v, want what it had: %+v", left, before)
	}
	out, err := exec.Command(weft, "lab", "clean").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, n := range append(before.Namespaces, before.Dirs...) {
		if !strings.Contains(string(out), n+"\n") {
			t.Errorf("clean does not say that it removed %s:\n%s", n, out)
		}
	}
	if left := l.traces(); !left.Empty() {
		t.Errorf("clean leaves %+v", left)
	}
	if now := other.traces(); !slices.Equal(now.Namespaces, others.Namespaces) || len(now.Processes) == 0 {
		t.Errorf("clean took from a running lab: %+v, had %+v", now, others)
	}
}

// TestRun carries real traffic over contenders of every kind, and looks at what comes out.
func TestRun(t *testing.T) {
	t.Parallel()
	all := []string{"tcp-stream", "udp-rr", "udp-rate:size=100", "mixed"}
	metrics := map[string]int{"tcp-stream": 1, "udp-rr": 5, "udp-rate:size=100": 2, "mixed": 2}
	for _, c := range []struct {
		name  string
		args  []string
		tests []string
		mtu   map[string]int
	}{
		{"split", []string{"--warmup", "1"}, all, map[string]int{"bare": 1500, "vxlan": 1450, "tun": 1450, "wireguard-go": 1420}},
		{"three nodes, free, IPv6", []string{"--layout", "free", "--nodes", "3", "--family", "6", "--mtu", "1600", "--warmup", "0"}, all,
			map[string]int{"bare": 1600, "vxlan": 1550, "tun": 1550, "wireguard-go": 1520}},
		{"small packets", []string{"--mtu", "1280", "--warmup", "0"}, all[1:2], map[string]int{"bare": 1280, "vxlan": 1230, "tun": 1230, "wireguard-go": 1200}},
		{"jumbo packets", []string{"--mtu", "9000", "--warmup", "0"}, all[1:2], map[string]int{"bare": 9000, "vxlan": 8950, "tun": 8950, "wireguard-go": 8920}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := start(t, append([]string{"--contenders", "bare,vxlan,tun,wireguard-go", "--tests", strings.Join(c.tests, ","),
				"--duration", "300ms", "--repeat", "2", "--out", "results", "--json", "r.json"}, c.args...)...)
			l.ran()
			if left := l.traces(); !left.Empty() {
				t.Errorf("left behind: %+v", left)
			}
			if strings.ContainsAny(l.err.String(), "\r\x1b") {
				t.Errorf("progress in a pipe: %q", l.err.String())
			}
			r := read(t, filepath.Join(l.Dir, "r.json"))
			if len(r.Failed)+len(r.Unsupported) > 0 {
				t.Errorf("failed %+v, unsupported %+v", r.Failed, r.Unsupported)
			}
			rows, paths := 0, 0
			for _, test := range c.tests {
				rows += len(c.mtu) * metrics[test]
				if strings.HasPrefix(test, "udp") {
					paths += len(c.mtu)
				}
			}
			if len(r.Results) != rows {
				t.Errorf("%d rows, want %d", len(r.Results), rows)
			}
			for _, row := range r.Results {
				checkRow(t, row, c.mtu[row.Contender])
			}
			checkBalances(t, r.Conservation, paths)
			if want := len(c.tests) * len(c.mtu); len(r.Integrity) < want { // and of the generators by themselves
				t.Errorf("%d accounts of verified bytes, want %d", len(r.Integrity), want)
			}
			for _, i := range r.Integrity {
				if !i.OK || i.Verified == 0 {
					t.Errorf("%+v", i)
				}
			}
			for _, d := range r.Details {
				if (len(d.Latency) > 0) != (d.Test == "udp-rr") || (len(d.Trials) > 0) != (d.Test == "udp-rate") || (len(d.Stages) > 0) != (d.Contender == "tun") || (len(d.Shapes) > 0) != (d.Test == "mixed") {
					t.Errorf("%s, %s: %d quantiles, %d trials, %d stages", d.Contender, d.Test, len(d.Latency), len(d.Trials), len(d.Stages))
				}
			}
			if !strings.HasPrefix(strings.Join(r.Command, " "), "weft lab run --contenders bare,vxlan,tun,wireguard-go --duration 300ms") || len(r.Details) < 4 {
				t.Errorf("%d details of %q", len(r.Details), r.Command)
			}
			for _, file := range []string{"report.html", "result.json", "result.csv", "table.txt"} {
				if data, err := os.ReadFile(filepath.Join(l.Dir, "results", file)); err != nil || len(data) == 0 {
					t.Errorf("%s: %d bytes, %v", file, len(data), err)
				}
			}
		})
	}
}

func read(t *testing.T, path string) (r result.Result) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func checkRow(t *testing.T, row result.Row, mtu int) {
	t.Helper()
	name := row.Contender + ", " + row.Test + ", " + row.Metric
	// A search on a machine that does other things may find no rate, and of losses 0 is the best.
	searched := row.Test == "udp-rate" || row.Metric == "loss"
	if len(row.Samples) != 2 || row.Low > row.Median || row.Median > row.High || row.Low < 0 || row.Low == 0 && row.Metric != "loss" || !searched && row.Samples.Unanswered() > 0 {
		t.Errorf("%s: %+v", name, row)
	}
	if row.InnerMTU != mtu {
		t.Errorf("%s: inner MTU %d, want %d", name, row.InnerMTU, mtu)
	}
	// Above idle there may be nothing, on a machine that was busier before.
	if stream := row.Test == "tcp-stream" || row.Test == "mixed"; stream && row.CPU.NanosecondsPerPacket > 0 || !stream && row.CPU.SecondsPerGigabyte > 0 {
		t.Errorf("%s: a cost of the wrong kind: %+v", name, row.CPU)
	}
	want := []string{"bench"}
	switch row.Contender {
	case "bare":
	case "wireguard-go":
		want = append(want, "wireguard-go-a", "wireguard-go-b")
	default:
		want = append(want, "weft-a", "weft-b")
	}
	for _, p := range want {
		if _, ok := row.CPU.Processes[p]; !ok {
			t.Errorf("%s: no processor time of %s: %v", name, p, row.CPU.Processes)
		}
	}
}

func checkBalances(t *testing.T, all []result.Balance, wantPaths int) {
	t.Helper()
	lanes, paths := map[string]bool{}, 0
	for _, b := range all {
		if b.PathBalance != nil {
			paths++
			if !b.OK || b.Delivered == 0 {
				t.Errorf("%s, %s: %+v", b.Contender, b.Test, *b.PathBalance)
			}
			continue
		}
		lanes[b.Node+" "+b.Lane] = true
		if b.Contender != "tun" || !b.OK {
			t.Errorf("%s, %s: %+v", b.Contender, b.Test, *b.LaneBalance)
		}
	}
	if paths != wantPaths || len(lanes) < 4 { // two directions on two nodes
		t.Errorf("%d accounts of UDP paths, want %d, and of lanes %v", paths, wantPaths, lanes)
	}
}

// TestEveryTest runs each test of the list, several flows and super-packets among them, over IPv6, and expects each of its
// figures and an account that adds up.
func TestEveryTest(t *testing.T) {
	t.Parallel()
	asked := []string{"tcp-stream:flows=8", "udp-rate:gso=1", "udp-overload:factor=3", "udp-stream:rate=1e7", "tcp-rr", "udp-rr", "udp-open-rr:rate=2000", "loaded-rr:flows=2", "tcp-crr", "cpu-fixed:rate=1e8", "mixed:rate=2e7:family=6"}
	l := start(t, "--contenders", "bare,tun,xdp", "--tests", strings.Join(asked, ","), "--family", "6",
		"--duration", "500ms", "--repeat", "1", "--warmup", "0", "--json", "r.json")
	l.ran()
	r := read(t, filepath.Join(l.Dir, "r.json"))
	for i, test := range probe.Tests {
		selected, err := probe.Parse(asked[i])
		if err != nil || selected.Test != test.Name {
			t.Fatalf("test %s of the list is not asked for: %s, %v", test.Name, selected, err)
		}
		for _, c := range []string{"bare", "tun", "xdp"} {
			for _, kind := range test.Metrics {
				rows := slices.DeleteFunc(slices.Clone(r.Results), func(row result.Row) bool {
					return row.Contender != c || row.Test != test.Name || row.Metric != kind.Name
				})
				if len(rows) != 1 || rows[0].Unit != kind.Unit || rows[0].Params["family"] != 6 {
					t.Errorf("%s, %s, %s: %+v", c, test.Name, kind.Name, rows)
					continue
				}
				for key, value := range selected.Params {
					if rows[0].Params[key] != value {
						t.Errorf("%s, %s: ran with %v, asked for %v", c, test.Name, rows[0].Params, selected.Params)
					}
				}
				if kind.ByLab && rows[0].Median <= 0 {
					t.Errorf("%s, %s: %v %s", c, test.Name, rows[0].Median, kind.Unit)
				}
			}
		}
	}
	udp := 0
	for _, b := range r.Conservation {
		if b.PathBalance != nil {
			udp++
		}
		if !b.OK {
			t.Errorf("%s, %s: %+v %+v", b.Contender, b.Test, b.PathBalance, b.LaneBalance)
		}
	}
	if udp != 3*5 { // of loaded-rr none: see its own words
		t.Errorf("%d accounts of UDP paths, want 15", udp)
	}
}

// TestFullDisk: a run into the folder of an earlier one, on a disk that is full or that its results fill, leaves the earlier results as they are.
func TestFullDisk(t *testing.T) {
	nettest.RequireRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("weft-test", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, 0) })
	temp := t.TempDir() // where a result goes that has no place
	t.Setenv("TMPDIR", temp)
	out, fill := filepath.Join(disk, "out"), filepath.Join(disk, "fill")
	run := func() *lab {
		return start(t, "--contenders", "bare", "--tests", "tcp-rr", "--duration", "100ms", "--repeat", "1", "--warmup", "0", "--out", out)
	}
	if l := run(); l.end() != 0 {
		t.Fatalf("%s", l.err.Bytes())
	}
	files, err := filepath.Glob(out + "/*")
	if err != nil || len(files) != 4 {
		t.Fatalf("%q, %v", files, err)
	}
	texts := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[f] = string(text)
	}
	if err := os.WriteFile(fill, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	info, err := os.Stat(fill)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		free int64
		code int
		says string
		kept int
	}{
		{0, 2, "no space left on device: make room", 0},           // seen before anything is measured
		{8 << 10, 1, "no space left on device: the result is", 1}, // room to try, not to write
	} {
		if err := os.Truncate(fill, info.Size()-c.free); err != nil {
			t.Fatal(err)
		}
		l := run()
		if code := l.end(); code != c.code || !strings.Contains(l.err.String(), c.says) {
			t.Errorf("with %d bytes free: exit code %d, want %d; said %q, want %q", c.free, code, c.code, l.err.String(), c.says)
		}
		now, err := filepath.Glob(out + "/*")
		if hidden, _ := filepath.Glob(out + "/.*"); err != nil || !slices.Equal(now, files) || len(hidden) > 0 {
			t.Errorf("the folder holds %q and %q, %v", now, hidden, err)
		}
		for f, text := range texts {
			if got, err := os.ReadFile(f); err != nil || string(got) != text {
				t.Errorf("%s is not what it was: %v", f, err)
			}
		}
		kept, err := filepath.Glob(temp + "/weft-lab-*.json")
		if err != nil || len(kept) != c.kept {
			t.Errorf("kept are %q, %v", kept, err)
		}
		for _, k := range kept {
			if r := read(t, k); len(r.Results) == 0 {
				t.Errorf("%s has no results", k)
			}
		}
	}
}

// TestOddTemp: the lab does not depend on what its temporary folder is called: longer than a unix socket's address, with characters that mean something
// elsewhere, relative.
func TestOddTemp(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	dir := t.TempDir()
	for _, temp := range []string{filepath.Join(dir, strings.Repeat("long", 50)), filepath.Join(dir, "a: b #{c}, 'd' \"e\""), "relative"} {
		l := command(t, "--contenders", "bare,tun-gso+aes-128-gcm,wireguard-go", "--tests", "udp-rr", "--duration", "100ms", "--repeat", "1", "--warmup", "0", "--json", "r.json")
		l.Env = append(os.Environ(), "TMPDIR="+temp)
		if !filepath.IsAbs(temp) {
			temp = filepath.Join(l.Dir, temp)
		}
		if err := os.Mkdir(temp, 0o700); err != nil {
			t.Fatal(err)
		}
		l.begin()
		if code := l.end(); code != 0 {
			t.Errorf("TMPDIR=%s: exit code %d:\n%s\n%s", temp, code, l.err.Bytes(), l.out.Bytes())
		}
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Errorf("TMPDIR=%s: left behind: %v, %v", temp, left, err)
		}
	}
}

// TestLargestMTU: what contenders with AF_XDP are said to carry at most they carry, and beyond it they are unsupported without a try; the others run.
func TestLargestMTU(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ contender, mtu, beyond string }{
		{"xdp,tun-xdp", "3506", "3507"}, {"xdp-udp", "3556", "3557"}, {"xdp-udp+aes-128-gcm", "3588", "3589"}, {"xdp-lib", "1762", "1763"},
	} {
		args := []string{"--tests", "udp-rr", "--duration", "100ms", "--repeat", "1", "--warmup", "0", "--json", "r.json"}
		l := start(t, append([]string{"--contenders", c.contender, "--mtu", c.mtu}, args...)...)
		if code := l.end(); code != 0 {
			t.Errorf("%s over %s: exit code %d:\n%s\n%s", c.contender, c.mtu, code, l.err.Bytes(), l.out.Bytes())
		}
		l = start(t, append([]string{"--contenders", "bare," + c.contender, "--mtu", c.beyond}, args...)...)
		if code := l.end(); code != 3 {
			t.Errorf("%s over %s: exit code %d:\n%s", c.contender, c.beyond, code, l.err.Bytes())
		}
		r := read(t, filepath.Join(l.Dir, "r.json"))
		if want := strings.Count(c.contender, ",") + 1; len(r.Unsupported) != want || len(r.Failed) > 0 || len(r.Results) == 0 || r.Results[0].Contender != "bare" {
			t.Errorf("%s over %s: %d rows, unsupported %+v, failed %+v", c.contender, c.beyond, len(r.Results), r.Unsupported, r.Failed)
			continue
		}
		if u := r.Unsupported[0].Reason; !strings.Contains(u, "at most "+c.mtu+" here: give --mtu "+c.mtu+" or less") {
			t.Errorf("%s over %s: %s", c.contender, c.beyond, u)
		}
	}
}

// TestOnlyIPv4: what is known of a contender once it is up, that it carries no IPv6, ends no sample in a failure.
func TestOnlyIPv4(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "ip")
	file := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(file, []byte(`#!/bin/sh
case $1 in
up) echo "$WEFT_PEERS" | while read -r _ _ gateway _ prefix _; do [ -z "$prefix" ] || ip route add "$prefix" via "$gateway" || exit; done ;;
addresses) echo "mtu $WEFT_MTU"; echo "prefix ${WEFT_PREFIXES%% *}" ;;
esac
`), 0o700); err != nil {
		t.Fatal(err)
	}
	l := start(t, "--contenders", "bare,exec:"+file, "--tests", "udp-rr,udp-rr:family=6", "--duration", "100ms", "--repeat", "1", "--warmup", "0", "--json", "r.json")
	if code := l.end(); code != 3 {
		t.Errorf("exit code %d:\n%s", code, l.err.Bytes())
	}
	r := read(t, filepath.Join(l.Dir, "r.json"))
	if len(r.Failed) > 0 || len(r.Unsupported) != 1 || !strings.Contains(r.Unsupported[0].Reason, "it carries no IPv6, and test udp-rr:family=6:size=64 is over it") {
		t.Errorf("failed %+v, unsupported %+v", r.Failed, r.Unsupported)
	}
}

// TestTrouble asks for what cannot be.
func TestTrouble(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--contenders", "bare,carrier-pigeon"}, 2, "there are bare"},
		{[]string{"--tests", "tcp-strem"}, 2, "tcp-stream"},
		{[]string{"--layout", "loose"}, 2, "split or free"},
		{[]string{"--repeat", "0", "--mtu", "100"}, 2, "mtu 100"},
		{[]string{"--contenders", "bare", "--tests", "udp-rate:size=1501", "--json", "r.json"}, 2, "inner MTU"},
		{[]string{"--contenders", "bare", "--tests", "udp-stream", "--mtu", "1300", "--json", "r.json"}, 2, "inner MTU"}, // by its default size
		{[]string{"--family", "6", "--mtu", "1300"}, 2, "too little for IPv6"},
		{[]string{"--mtu", "9001"}, 2, "1280 to 9000"},
		{[]string{"--tests", "udp-rate:size=50:family=6"}, 2, "test udp-rate:family=6:size=50: size 50"},
		{[]string{"--tests", "udp-rate:imix=1:gso=1"}, 2, "a super-packet's datagrams have one size"},
		{[]string{"--contenders", "bare,vxlan", "--fault", "vxlan:1us"}, 2, "none of the contenders has stages"},
		{[]string{"--json", "."}, 2, "--json .: this is a folder"},
		{[]string{"--json", "/proc/r.json"}, 2, "--json /proc/r.json: "},
		{[]string{"--out", "/dev/null"}, 2, "--out /dev/null: "},
		{[]string{"--contenders", "xdp+aes-128-gcm,xdp-lib", "--tests", "udp-rr", "--mtu", "9000", "--json", "r.json"}, 3, "not every contender"},
	} {
		l := start(t, c.args...)
		if code := l.end(); code != c.code || !strings.Contains(l.err.String(), c.says) {
			t.Errorf("%v: exit code %d, want %d; said %q, want %q in it", c.args, code, c.code, l.err.String(), c.says)
		}
		if left := l.traces(); !left.Empty() {
			t.Errorf("%v: left behind: %+v", c.args, left)
		}
	}
}
