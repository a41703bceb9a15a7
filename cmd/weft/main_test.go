package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft/api"
	"weft/catalog"
	"weft/catalog/mode"
	"weft/internal/config"
	"weft/node/daemon"
)

// weftMain runs a command line in this process, as main does.
func weftMain(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	err := execute(ctx, root, &errs)
	return out.String(), errs.String(), exitCode(err, false)
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad, good := filepath.Join(dir, "bad.yaml"), filepath.Join(dir, "good.yaml")
	for file, text := range map[string]string{bad: "network: 10.0.0.0/33\nnod: 1\n", good: "network: 10.244.0.0/16\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	none := filepath.Join(dir, "none")
	for line, want := range map[string]struct {
		code int
		says string // on standard output when 0, else on standard error
	}{
		"":                                       {0, "Available Commands"},
		"--help":                                 {0, "Exit codes: 0 done"},
		"config":                                 {0, "show"},
		"version":                                {0, "weft "},
		"version -o json":                        {0, `"go": "go1`},
		"config show --config " + good:           {0, "network.prefixes"},
		"daemon --check --config " + good:        {0, "is good"},
		"nonsense":                               {2, `unknown command "nonsense" for "weft": see ` + "`weft --help`"},
		"config nonsense":                        {2, `unknown command "nonsense" for "weft config"`},
		"status --nonsense":                      {2, "unknown flag: --nonsense: see `weft status --help`"},
		"status extra":                           {2, `unknown command "extra" for "weft status"`},
		"status -o yaml":                         {2, "write text or json"},
		"stages --interval x":                    {2, "invalid argument"},
		"stages --interval -1s --socket " + none: {2, "write a time above 0"},
		"daemon --config " + none:                {2, "does not exist: write one"},
		"daemon --config " + bad:                 {2, "bad.yaml:2: nod: unknown key: did you mean node?"},
		"daemon --check --config " + bad:         {2, "bad.yaml:1: network:"},
		"config show --config " + bad:            {2, "bad.yaml:1: network:"},
		"doctor --config " + none:                {1, "things are wrong"},
		"status --socket " + none:                {4, "daemon not reachable: dial unix " + none},
		"nodes --socket " + none:                 {4, "daemon not reachable"},
		"peers --socket " + none:                 {4, "daemon not reachable"},
		"routes --socket " + none:                {4, "daemon not reachable"},
		"stages --socket " + none:                {4, "daemon not reachable"},
		"capture --socket " + none:               {4, "daemon not reachable"},
		"capture --filter ether":                 {2, `"ether" is no condition`},
	} {
		t.Run(line, func(t *testing.T) {
			stdout, stderr, code := weftMain(t.Context(), strings.Fields(line)...)
			said := stdout
			if want.code != 0 {
				said = stderr
			}
			if code != want.code || !strings.Contains(said, want.says) {
				t.Errorf("exit code %d, want %d; wanted %q in\n%s%s", code, want.code, want.says, stdout, stderr)
			}
			if want.code != 0 {
				for l := range strings.Lines(stderr) {
					if !strings.HasPrefix(l, "weft: ") {
						t.Errorf("a line of an error that does not say whose it is: %q", l)
					}
				}
			}
		})
	}
}

func TestExitCodeOfErrors(t *testing.T) {
	plain := errors.New("x")
	for i, c := range []struct {
		err         error
		interrupted bool
		want        int
	}{
		{nil, false, 0}, {plain, false, 1}, {nil, true, 130}, {plain, true, 130},
		{fmt.Errorf("y: %w", usageError{plain}), false, 2}, {fmt.Errorf("y: %w", unsupportedError{plain}), false, 3},
		{fmt.Errorf("y: %w", api.ErrUnreachable), false, 4}, {fmt.Errorf("%w: %w", daemon.ErrConfiguration, plain), false, 2},
		{daemon.ErrRunning, false, 1}, {errors.Join(plain, interruptedError{context.Canceled}), false, 130},
	} {
		if got := exitCode(c.err, c.interrupted); got != c.want {
			t.Errorf("case %d, %v: exit code %d, want %d", i, c.err, got, c.want)
		}
	}
}

// A daemon's tables, from a daemon of known answers.
type oracle struct {
	api.Daemon
	looked func() // called when the lanes are asked for; nil = nothing
}

func (oracle) Status() api.Status {
	now := time.Now()
	return api.Status{Node: "a", Mode: "tun", Modes: []string{"tun"}, Now: now, Started: now.Add(-90 * time.Second), Reason: "no device", Control: api.Control{Kind: "static", Nodes: 2, AsOf: now.Add(-5 * time.Second)},
		Apply: api.Apply{Failures: 3, Error: "EPERM", Retry: now.Add(1500 * time.Millisecond)}, Problems: []api.Problem{{Node: "b", Text: "has no endpoint"}, {Text: "old data"}},
		Features: map[string]string{"gso": "on", "gro": "off: EINVAL"}}
}

func (o oracle) Lanes() []api.Lane {
	if o.looked != nil {
		o.looked()
	}
	return []api.Lane{{Name: "out/0", Turns: 1000, Received: 41000, Sent: 39796, Age: 2e9, Waited: 5e8, Stages: []api.Stage{
		{Name: "recv tun", Calls: 1000, Packets: 41000, Timed: 10, Nanos: 3100},
		{Name: "route", Calls: 1000, Packets: 41000, Timed: 0, Drops: map[string]uint64{"no-route": 1200, "not-ip": 4}},
	}}}
}

func TestTexts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := api.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	watching, stop := context.WithCancelCause(t.Context())
	var looks atomic.Int64 // since --watch began
	looks.Store(-1 << 30)
	looked := func() {
		if looks.Add(1) == 5 { // what came before is printed
			stop(signalError{os.Interrupt})
		}
	}
	go func() { done <- api.Serve(ctx, l, oracle{looked: looked}, silent{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for command, want := range map[string][]string{
		"status": {"ready         no: no device", "nodes         2 from static, confirmed 5s ago", "never, then failed 3 times, next try in 1.5s: EPERM",
			"gro off: EINVAL, gso on", "problem       b: has no endpoint", "problem       old data", "up 1m30s"},
		"stages": {"lane out/0   2.0 s   20.5k packet/s   busy 75 %   41.0 packets/batch", "stage      calls   packets   packets/call   ns/packet   drops",
			"recv tun   1000    41.0k     41.0           310         -", "route      1000    41.0k     41.0           -           no-route 1200, not-ip 4"},
		"stages --interval 1ms": {"lane out/0   0.0 s   0 packet/s   busy 0 %"},
	} {
		out, errs, code := weftMain(t.Context(), append(strings.Fields(command), "--socket", socket)...)
		for _, w := range want {
			if code != 0 || !strings.Contains(out, w) {
				t.Errorf("weft %s: exit code %d, no %q in\n%s%s", command, code, w, out, errs)
			}
		}
	}
	// --watch goes on until it is interrupted.
	looks.Store(0)
	if out, errs, code := weftMain(watching, "stages", "--watch", "--interval", "1ms", "--socket", socket); code == 0 || errs != "" || strings.Count(out, "lane out/0") < 2 {
		t.Errorf("--watch: exit code %d, %q\n%s", code, errs, out)
	}
}

// Every mode's port and every source is known to the configuration as the catalog has it.
func TestConfigurationKnowsTheCatalog(t *testing.T) {
	for _, m := range catalog.Modes {
		c, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\nmode: "+m.Name), catalog.Built())
		if err == nil {
			err = c.Detect(config.Host{Name: func() (string, error) { return "a", nil }, CPUs: 1})
		}
		if err != nil || c.Network.Port != m.Port {
			t.Errorf("mode %s: port %d, want %d; %v", m.Name, c.Network.Port, m.Port, err)
		}
	}
	if c, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16"), catalog.Built()); err != nil || c.Mode.Name != mode.Default || c.Control.Kind == "" {
		t.Errorf("defaults: %+v, %v", c, err)
	}
}

// Every file of examples/ is one this build takes.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("examples: %q, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		conf, nodes := filepath.Join(dir, "weft.yaml"), filepath.Join(dir, "nodes.yaml")
		if strings.HasPrefix(filepath.Base(file), "nodes") {
			// For each node that it lists it must be good.
			if err := os.WriteFile(nodes, text, 0o600); err != nil {
				t.Fatal(err)
			}
			text = []byte("node: {name: a}\nnetwork: {prefixes: [10.244.0.0/16, \"fd00:10:244::/48\"]}\ncontrol: {static: {file: " + nodes + "}}\n")
		} else { // on node a, with the example's nodes instead of this machine's
			password := filepath.Join(dir, "password") // no example's: it is in nobody's repository
			if err := os.WriteFile(password, []byte("correct horse battery staple\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			text = bytes.ReplaceAll(text, []byte("/etc/weft/password"), []byte(password))
			text = bytes.ReplaceAll(text, []byte("/etc/weft/"), []byte(filepath.Dir(must(filepath.Abs(file)))+"/"))
			text = bytes.Replace(text, []byte(`name: ""`), []byte(`name: a`), 1)
		}
		if err := os.WriteFile(conf, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := weftMain(t.Context(), "daemon", "--check", "--config", conf); code != 0 {
			t.Errorf("%s: %s", file, stderr)
		}
	}
}

// The example with every key says that it holds the defaults.
func TestExampleOfDefaults(t *testing.T) {
	example, err := config.Load("../../examples/weft.yaml", catalog.Built())
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16"), catalog.Built())
	if err != nil {
		t.Fatal(err)
	}
	shown := defaults.Show()
	for i, v := range example.Show() {
		if !example.Set(v.Key) || fmt.Sprint(v.Value) != fmt.Sprint(shown[i].Value) {
			t.Errorf("%s: in the example %v (in the file: %v), by default %v", v.Key, v.Value, example.Set(v.Key), shown[i].Value)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// The binary logs JSON lines into a pipe.
func TestLogFormat(t *testing.T) {
	weft, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	_, errs, code := run(t, (*exec.Cmd).Start, weft, "daemon", "--config", filepath.Join(t.TempDir(), "none"))
	if code != exitUsage || !strings.HasPrefix(errs, "weft: config: ") {
		t.Errorf("exit code %d, %q", code, errs)
	}
	var out bytes.Buffer
	newLog(&out).Info("hello")
	if !strings.HasPrefix(out.String(), `{"level":"info","time":"`) || !strings.Contains(out.String(), `"msg":"hello"`) {
		t.Errorf("log line %q", out.String())
	}
}
