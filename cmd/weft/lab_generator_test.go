package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"weft/perf/probe"
)

// benchServer runs `weft lab generator serve` on loopback for the length of the test and returns its address.
func benchServer(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	root := newRoot()
	root.SetArgs(strings.Fields("lab generator serve --listen 127.0.0.1:0 --for 1m"))
	root.SetOut(w)
	done := make(chan error, 1)
	go func() { done <- execute(ctx, root, io.Discard) }()
	t.Cleanup(func() {
		cancel()
		r.Close()
		if err := <-done; err != nil {
			t.Errorf("bench serve: %v", err)
		}
	})
	out := bufio.NewReader(r)
	line, err := out.ReadString('\n')
	go io.Copy(io.Discard, out)
	at, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		t.Fatalf("bench serve said %q, %v", line, err)
	}
	return at
}

func TestBench(t *testing.T) {
	at := benchServer(t)
	for line, want := range map[string]struct {
		code int
		says string
	}{
		"--to " + at + " --test udp-rr --duration 50ms":                       {0, "generated, "},
		"--to " + at + " --test tcp-stream:flows=2 --duration 50ms":           {0, "Gbit/s"},
		"--to " + at + " --test tcp-rr:family=6":                              {2, "is an IPv4 address"},
		"--to " + at + " --test tcp-rr --duration 0s":                         {2, "duration 0s"},
		"--to " + at + " --test ping":                                         {2, "the tests are tcp-stream, "},
		"--to " + at + " --test udp-rr:size=20":                               {2, "must be between 41"},
		"--to 192.0.2 --test tcp-rr":                                          {2, "as in 192.0.2.1:8479"},
		"--to " + at:                                                          {2, `"test" not set`},
		"--to " + at + " --test tcp-rr --congestion nonesuch --duration 50ms": {1, "tcp_available_congestion_control"},
		"--to 127.0.0.1:1 --test tcp-rr":                                      {1, "is there a server?"},
	} {
		stdout, stderr, code := weftMain(t.Context(), append([]string{"lab", "generator", "run"}, strings.Fields(line)...)...)
		if code != want.code || !strings.Contains(stdout+stderr, want.says) {
			t.Errorf("%s: exit code %d, want %d; wanted %q in\n%s%s", line, code, want.code, want.says, stdout, stderr)
		}
	}
	if _, stderr, code := weftMain(t.Context(), "lab", "generator", "serve", "--listen", at); code != 1 || !strings.Contains(stderr, "in use") {
		t.Errorf("a second server on the address: exit code %d, %s", code, stderr)
	}
}

func TestBenchJSON(t *testing.T) {
	at := benchServer(t)
	stdout, stderr, code := weftMain(t.Context(), strings.Fields("lab generator run --test udp-rate:size=128 --duration 200ms -o json --to "+at)...)
	var r probe.Result
	if err := json.Unmarshal([]byte(stdout), &r); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v:\n%s%s", code, err, stdout, stderr)
	}
	if r.Test != "udp-rate" || r.Params["size"] != 128 || r.Payload != 100 || len(r.Trials) == 0 || r.Unanswered == "" && len(r.Metrics) != 2 {
		t.Errorf("got %+v", r)
	}
}

func TestBenchAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":          "192.0.2.1:8479",
		"192.0.2.1:1":        "192.0.2.1:1",
		"2001:db8::1":        "[2001:db8::1]:8479",
		"[2001:db8::1]":      "[2001:db8::1]:8479",
		"[2001:db8::1]:9":    "[2001:db8::1]:9",
		"[fe80::1%eth0]:9":   "[fe80::1%eth0]:9",
		"":                   "",
		"localhost:1":        "",
		"192.0.2.1:65536":    "",
		"192.0.2.1:8479/tcp": "",
	} {
		got, err := parseBenchAddr(text)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("%q: got %s, %v; want %q", text, got, err, want)
		}
	}
}
