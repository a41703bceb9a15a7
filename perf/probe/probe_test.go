package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"
)

// serve runs a server for the length of the test and returns its address.
func serve(t *testing.T, cfg Config) netip.AddrPort {
	t.Helper()
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan netip.AddrPort, 1), make(chan error, 1)
	cfg.Ready = func(a netip.AddrPort) { ready <- a }
	go func() { done <- Serve(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	select {
	case a := <-ready:
		return a
	case err := <-done:
		done <- nil
		t.Fatalf("the server did not start: %v", err)
		return netip.AddrPort{}
	}
}

func loopbacks(t *testing.T, f func(t *testing.T, listen netip.AddrPort)) {
	for _, a := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(a, func(t *testing.T) { f(t, netip.MustParseAddrPort(a)) })
	}
}

// Every test of the list runs and reports the figures the list promises.
func TestEveryTestOnLoopback(t *testing.T) {
	loopbacks(t, func(t *testing.T, listen netip.AddrPort) {
		target := serve(t, Config{Listen: listen})
		for _, test := range Tests {
			t.Run(test.Name, func(t *testing.T) {
				spec := Spec{Test: test.Name, Target: target, Duration: 300 * time.Millisecond, Congestion: "reno", Params: Params{}}
				if test.Name == "udp-stream" {
					spec.Params["rate"] = 1e7
				}
				r, err := Run(context.Background(), spec)
				if err != nil {
					t.Fatal(err)
				}
				if unanswered(t, r) {
					return
				}
				for _, m := range test.Metrics {
					v, ok := r.Metric(m.Name)
					if ok == m.ByLab {
						t.Errorf("%s: reported %v, by the lab %v", m.Name, ok, m.ByLab)
					}
					if !m.ByLab && m.Name != "loss" && !(v > 0) {
						t.Errorf("%s is %v", m.Name, v)
					}
				}
				if strings.HasPrefix(test.Name, "udp") {
					conserved(t, r)
				} else if r.Congestion != "reno" {
					t.Errorf("congestion control is %q, not the one asked for", r.Congestion)
				}
				if r.Bytes == 0 || r.Seconds <= 0 || r.Payload <= 0 {
					t.Errorf("incomplete: %+v", r)
				}
				if _, err := json.Marshal(r); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// unanswered says that a search found no rate, as may be where the machine does other things, and then has no figures.
func unanswered(t *testing.T, r Result) bool {
	t.Helper()
	if r.Unanswered == "" {
		return false
	}
	if len(r.Metrics) > 0 || len(r.Trials) == 0 || r.Test != "udp-rate" && r.Test != "udp-overload" {
		t.Errorf("unanswered: %+v", r)
	}
	return true
}

// conserved: on loopback nothing is lost but in the receiver's socket.
func conserved(t *testing.T, r Result) {
	t.Helper()
	if r.Generated == 0 || r.Generated != r.Delivered+r.KernelDrops[socketOverflow] || r.Duplicates+r.Reordered != 0 {
		t.Errorf("generated %d, delivered %d, dropped %v, duplicates %d, reordered %d",
			r.Generated, r.Delivered, r.KernelDrops, r.Duplicates, r.Reordered)
	}
}

func TestStreamFlowsAndIntervals(t *testing.T) {
	target := serve(t, Config{})
	r, err := Run(context.Background(), Spec{
		Test: "tcp-stream", Params: Params{"flows": 5}, Target: target, Duration: 250 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	var bytes uint64
	var seconds float64
	for _, i := range r.Intervals {
		bytes, seconds = bytes+i.Bytes, seconds+i.Seconds
	}
	if len(r.Intervals) == 0 || bytes != r.Bytes || seconds < .25 || r.Congestion != "cubic" {
		t.Errorf("got %+v", r)
	}
}

// A fixed rate is kept; the rest of the CPU test is the lab's.
func TestFixedRate(t *testing.T) {
	target := serve(t, Config{})
	r, err := Run(context.Background(), Spec{
		Test: "cpu-fixed", Params: Params{"rate": 80e6}, Target: target, Duration: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	// The sender never writes ahead of its schedule by more than a buffer.
	if most := uint64(80e6/8*r.Seconds) + 2*frameSize; r.Bytes > most {
		t.Errorf("%d bytes in %v s, at most %d are due", r.Bytes, r.Seconds, most)
	}
}

// Round trips beside a stream share one data port with it, verify both, and share the limit of what one end sends.
func TestLoadedRoundTrips(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	l.Close()
	target := serve(t, Config{DataPort: port})
	spec := Spec{Test: "loaded-rr", Target: target, Duration: 300 * time.Millisecond, Limit: Limit{Bits: 80e6}}
	r, err := Run(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	throughput, _ := r.Metric("throughput")
	if most := 80e6/8*.9 + 2*frameSize/r.Intervals[0].Seconds; !(throughput > 0) || float64(r.Bytes) > most {
		t.Errorf("%v bit/s, %d bytes of at most %v", throughput, r.Bytes, most)
	}
	if r.Transactions == 0 || len(r.Latency) == 0 || r.Verified < r.Bytes || r.Corrupt != 0 || r.Generated != 0 {
		t.Errorf("%+v", r)
	}
}

func TestOneDataPort(t *testing.T) {
	l, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(l.LocalAddr().String()).Port()
	l.Close()
	target := serve(t, Config{DataPort: port})
	for _, test := range []string{"tcp-rr", "udp-rr", "tcp-rr"} {
		if _, err := Run(context.Background(), Spec{Test: test, Target: target, Duration: 20 * time.Millisecond}); err != nil {
			t.Error(err)
		}
	}
}

func TestSpecErrors(t *testing.T) {
	target := serve(t, Config{})
	good := Spec{Test: "udp-rr", Target: target, Duration: 50 * time.Millisecond}
	for name, c := range map[string]struct {
		spec func(s *Spec)
		want string
	}{
		"unknown test":        {func(s *Spec) { s.Test = "ping" }, "unknown test"},
		"no target":           {func(s *Spec) { s.Target = netip.AddrPort{} }, "an address and port are needed"},
		"no duration":         {func(s *Spec) { s.Duration = 0 }, "duration 0s"},
		"unknown parameter":   {func(s *Spec) { s.Params = Params{"flows": 1} }, "it takes size, family"},
		"family":              {func(s *Spec) { s.Params = Params{"family": 6} }, "is an IPv4 address"},
		"UDP size too small":  {func(s *Spec) { s.Params = Params{"size": 43} }, "at least 44"},
		"unknown congestion":  {func(s *Spec) { s.Test, s.Congestion = "tcp-rr", "nonesuch" }, "tcp_available_congestion_control"},
		"nonsense congestion": {func(s *Spec) { s.Test, s.Congestion = "tcp-rr", "a b" }, "is not a name"},
		"nobody there":        {func(s *Spec) { s.Target = netip.AddrPortFrom(s.Target.Addr(), 1) }, "is there a server?"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := good
			c.spec(&spec)
			r, err := Run(context.Background(), spec)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %+v, %v; want an error with %q", r, err, c.want)
			}
		})
	}
}

// Cancelling ends a test at once, on both sides, with the context's error.
func TestCancel(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("run", func(t *testing.T) {
		target := serve(t, Config{})
		for _, test := range Tests {
			t.Run(test.Name, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				time.AfterFunc(150*time.Millisecond, cancel)
				_, err := Run(ctx, Spec{Test: test.Name, Target: target, Duration: time.Hour})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
		}
	})
	noMoreThan(t, before)
}

// noMoreThan waits until no more than n goroutines are left.
func noMoreThan(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), n, buf[:runtime.Stack(buf, true)])
		}
	}
}

// A server that ends in the middle of a test is an error that says so, and soon.
func TestServerEndsMidTest(t *testing.T) {
	for _, test := range Tests {
		t.Run(test.Name, func(t *testing.T) {
			t.Parallel()
			target := serve(t, Config{For: 300 * time.Millisecond})
			_, err := Run(context.Background(), Spec{Test: test.Name, Target: target, Duration: time.Hour})
			if err == nil || !strings.Contains(err.Error(), "did it stop?") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A server that is there but says nothing more is an error, too.
func TestServerFallsSilent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Run(context.Background(), Spec{
		Test: "udp-rate", Target: netip.MustParseAddrPort(l.Addr().String()), Duration: time.Second,
	})
	if err == nil || !strings.Contains(err.Error(), `no "ready" from the server`) {
		t.Errorf("got %v", err)
	}
}

// scripted is a server that answers the n-th line with the n-th answer and hangs up after the last.
func scripted(t *testing.T, answers ...string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		in := bufio.NewReader(c)
		for _, a := range answers {
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
			fmt.Fprintln(c, a)
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestClientAgainstStrangeServers(t *testing.T) {
	for name, c := range map[string]struct {
		answers []string
		want    string
	}{
		"another version":   {[]string{`{"type":"error","error":"version: the server speaks weft.bench/9"}`}, "the server refused: version"},
		"not JSON":          {[]string{"SSH-2.0-OpenSSH_9.2"}, "not a control message"},
		"unknown fields":    {[]string{`{"type":"ready","colour":"red"}`}, "unknown field"},
		"out of turn":       {[]string{`{"type":"counts"}`}, `"counts" where "ready" was due`},
		"a line too long":   {[]string{strings.Repeat("x", maxLine+1)}, "longer than"},
		"hangs up":          {nil, "did it stop?"},
		"counts of nothing": {[]string{`{"type":"ready","port":9}`, `{"type":"counts"}`}, "without numbers"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(context.Background(), Spec{Test: "udp-rate", Target: scripted(t, c.answers...), Duration: time.Second})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// talk sends one line to a server and returns its first answer.
func talk(t *testing.T, to netip.AddrPort, line string) message {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, line)
	m, err := newControl(c).read()
	if err != nil {
		t.Fatalf("%.60q: %v", line, err)
	}
	return m
}

func TestServerAgainstStrangeClients(t *testing.T) {
	target := serve(t, Config{})
	hello := func(version, job string) string {
		return fmt.Sprintf(`{"type":"hello","version":%q,"job":%s}`, version, job)
	}
	for line, want := range map[string]string{
		"GET / HTTP/1.1":              "not a control message",
		"{}":                          "no type",
		`{"type":"hello"} {}`:         "more than one value",
		`{"type":"stop"}`:             `"stop" where "hello" was due`,
		`{"type":"hello"}`:            "use the same weft at both ends",
		hello("weft.bench/0", "null"): "use the same weft at both ends",
		hello(Version, "null"):        "without a job",
		hello(Version, `{"role":"proxy","duration_ms":1}`):                                         "unknown role",
		hello(Version, `{"role":"udp-sink","payload":0,"duration_ms":1}`):                          "payload 0",
		hello(Version, `{"role":"udp-echo","payload":65508,"duration_ms":1}`):                      "payload 65508",
		hello(Version, `{"role":"udp-echo","payload":64,"duration_ms":-1}`):                        "duration -1",
		hello(Version, `{"role":"tcp-sink","flows":129,"congestion":"cubic","duration_ms":1}`):     "flows 129",
		hello(Version, `{"role":"tcp-sink","flows":1,"congestion":"../x","duration_ms":1}`):        "is not a name",
		hello(Version, `{"role":"tcp-sink","flows":1,"congestion":"nonesuch","duration_ms":1}`):    "tcp_available_congestion_control",
		hello(Version, `{"role":"tcp-sink","flows":1,"congestion":"cubic","duration_ms":3600001}`): "duration 3600001",
		strings.Repeat("x", maxLine+10):                                                            "longer than",
	} {
		if m := talk(t, target, line); m.Type != msgError || !strings.Contains(m.Error, want) {
			t.Errorf("%.60q: got %+v, want an error with %q", line, m, want)
		}
	}
	// It still serves.
	if _, err := Run(context.Background(), Spec{Test: "udp-rr", Target: target, Duration: 10 * time.Millisecond}); err != nil {
		t.Error(err)
	}
}

// Strangers at the data port are neither counted nor let in.
func TestStrangersAtTheDataPort(t *testing.T) {
	target := serve(t, Config{})
	for _, role := range []string{roleTCPSink, roleUDPSink} {
		c, err := net.Dial("tcp", target.String())
		if err != nil {
			t.Fatal(err)
		}
		ctl := newControl(c)
		defer ctl.Close()
		if err := ctl.write(message{Type: msgHello, Version: Version, Job: &job{
			Role: role, Flows: 1, Payload: 64, DurationMS: 1000, Congestion: "cubic",
		}}); err != nil {
			t.Fatal(err)
		}
		ready, err := ctl.read()
		if err != nil || ready.Type != msgReady {
			t.Fatalf("got %+v, %v", ready, err)
		}
		to := netip.AddrPortFrom(target.Addr(), ready.Port).String()
		if role == roleTCPSink {
			stranger, err := net.Dial("tcp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer stranger.Close()
			fmt.Fprint(stranger, "8 bytes.")
			if n, err := stranger.Read(make([]byte, 1)); err == nil {
				t.Errorf("a stranger was sent %d bytes", n)
			}
			continue
		}
		stranger, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer stranger.Close()
		fmt.Fprint(stranger, "neither long enough")
		fmt.Fprint(stranger, "nor short, but of no session at all")
		own, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		b := make([]byte, 64)
		newPattern(ready.Token).put(b, toServer, header{1, 0})
		own.Write(b)
		ctl.write(message{Type: msgCount, Trial: 1, Sent: 1})
		m, err := ctl.read()
		if err != nil || m.Counts == nil || m.Counts.Packets != 1 || m.Counts.Bytes != 64 || m.Counts.Strangers != 2 || m.Counts.Corrupt != 0 {
			t.Errorf("got %+v, %v", m.Counts, err)
		}
	}
}

func TestServeNeedsAnAddressOfItsOwn(t *testing.T) {
	taken := serve(t, Config{})
	if err := Serve(context.Background(), Config{Listen: taken}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v", err)
	}
}

// Whatever comes over a control connection, it decodes to a message or an error, and a job that
// passes is within the server's bounds.
func FuzzDecode(f *testing.F) {
	for _, m := range []message{
		{Type: msgHello, Version: Version, Job: &job{Role: roleUDPSink, Payload: 64, DurationMS: 1000}},
		{Type: msgHello, Version: Version, Job: &job{Role: roleTCPSink, Flows: 2, DurationMS: 1000, Congestion: "cubic"}},
		{Type: msgCounts, Counts: &counts{Packets: 1, Intervals: []Interval{{1, 2, 3}}}},
		{Type: msgStart, Payload: 12},
		{Type: msgError, Error: "no"},
	} {
		line, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			return
		}
		if m.Type == "" {
			t.Error("a message without a type")
		}
		if m.Job == nil || m.Job.validate() != nil {
			return
		}
		j := m.Job
		udp := j.Role == roleUDPEcho || j.Role == roleUDPSink
		if d := j.duration(); d <= 0 || d > maxDuration ||
			udp && (j.Payload < probeHeader || j.Payload > maxPayload) ||
			!udp && (j.Flows < 1 || j.Flows > maxFlows || strings.ContainsAny(j.Congestion, "/. ")) {
			t.Errorf("passed: %+v", j)
		}
	})
}

// FuzzServer throws lines at a running server: it answers or hangs up, and goes on serving.
func FuzzServer(f *testing.F) {
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan netip.AddrPort, 1)
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Ready: func(a netip.AddrPort) { ready <- a }})
	}()
	target := <-ready
	f.Cleanup(func() { cancel(); <-done })
	f.Add([]byte(`{"type":"hello","version":"weft.bench/2","job":{"role":"udp-sink","payload":64,"duration_ms":9}}` + "\n" + `{"type":"count"}`))
	f.Add([]byte(`{"type":"hello","version":"weft.bench/2","job":{"role":"udp-echo","payload":64,"duration_ms":9}}` + "\n" + `{"type":"stop"}`))
	f.Add([]byte(`{"type":"hello","version":"weft.bench/2","job":{"role":"tcp-accept","flows":1,"congestion":"reno","duration_ms":9}}` + "\n"))
	f.Fuzz(func(t *testing.T, lines []byte) {
		c, err := net.Dial("tcp", target.String())
		if err != nil {
			t.Fatal(err)
		}
		c.Write(append(lines, '\n'))
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		for in := newControl(c); ; {
			_, err := in.read()
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%q: the server keeps silent", lines)
			}
			if err != nil {
				break
			}
		}
		c.Close()
	})
}
