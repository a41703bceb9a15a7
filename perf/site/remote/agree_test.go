package remote_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/perf/result"
)

// These are about how fast the machine is, so they are benchmarks: they want it for themselves, print what they find, and are not part of the tests.
//
//	go test ./perf/site/remote -run '^$' -bench Agree -benchtime 1x -timeout 60m
//	WEFT_AGREE=300ms:3 … a shorter one: so long a sample, so many of each

// agreement is how much is measured.
func agreement(b *testing.B) (sample string, rounds int) {
	sample, text, _ := strings.Cut(cmp.Or(os.Getenv("WEFT_AGREE"), "1s:9"), ":")
	rounds, err := strconv.Atoi(text)
	if err != nil || rounds < 1 {
		b.Fatalf("WEFT_AGREE=%s: give a duration and a number, 1s:9", os.Getenv("WEFT_AGREE"))
	}
	return sample, rounds
}

// pinned are two hosts that are joined by one link and have one processor each, as the nodes of the lab's layout split on two.
func pinned(b *testing.B, flags ...string) *hosts {
	nettest.RequireTool(b, "taskset")
	h := newHosts(b)
	nettest.Pair(b, nettest.End{NS: h.a, Dev: "eth0"}, nettest.End{NS: h.b, Dev: "eth0"}, 1500)
	for i, host := range []*nettest.NS{h.a, h.b} {
		host.MustRun(b, "ip", "addr", "add", []string{linkA, linkB}[i]+"/24", "dev", "eth0")
		steer := fmt.Sprintf("echo %x >/sys/class/net/eth0/queues/rx-0/rps_cpus", 1<<i)
		if out, err := exec.Command("ip", "netns", "exec", host.Name(), "sh", "-c", steer).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		h.agents[i] = h.started(host, "taskset", append([]string{"-c", fmt.Sprint(i), weft, "bench", "serve", "--secret", h.file, "--max-cores", "1"}, flags...)...)
	}
	h.addrs = [2]string{linkA, linkB}
	return h
}

const linkA, linkB = "192.0.2.1", "192.0.2.2"

// pool collects the samples of a figure over several runs.
type pool map[[3]string]result.Samples // by contender, test and metric

func (p pool) add(contender, test, metric string, s result.Samples) {
	k := [3]string{contender, test, metric}
	p[k] = append(p[k], s...)
}

// rows adds a result's, of one path.
func (p pool) rows(r *result.Result, path string) {
	for _, row := range r.Results {
		if row.Path == path {
			p.add(row.Contender, row.Test, row.Metric, row.Samples)
		}
	}
}

// BenchmarkAgree measures the same contenders in the lab and between two namespaces that stand for hosts, in turn, and says whether each figure of one lies
// within the interval of the other. What bench calls bare, from host to host, the lab has as what its generators do between nodes without pods.
func BenchmarkAgree(b *testing.B) {
	sample, rounds := agreement(b)
	h := pinned(b, "--xdp")
	const contenders, tests = "bare,vxlan,tun,tun-gso,xdp,tun-gso+aes-256-gcm", "tcp-stream,tcp-rr,udp-rate:size=64"
	const turns = 3
	lab, bench := pool{}, pool{}
	for range b.N {
		for turn := range turns {
			repeat := fmt.Sprint((rounds + turns - 1 - turn) / turns)
			if repeat == "0" {
				continue
			}
			out := filepath.Join(b.TempDir(), "lab")
			if said, err := exec.Command(weft, "lab", "run", "--contenders", contenders, "--tests", tests, "--duration", sample, "--repeat", repeat, "--warmup", "0", "--out", out).CombinedOutput(); err != nil {
				b.Logf("the lab: %v\n%s", err, said)
			}
			r, err := result.Read(filepath.Join(out, "result.json"))
			if err != nil {
				b.Fatal(err)
			}
			lab.rows(r, "")
			for _, g := range r.Generator {
				lab.add("bare, no pods", g.Test, g.Metric, g.Samples)
			}
			r, said, err := h.run("--contenders", contenders, "--tests", tests, "--duration", sample, "--repeat", repeat)
			if r == nil {
				b.Fatalf("%v\n%s", err, said)
			}
			if err != nil {
				b.Logf("bench: %v\n%s", err, said)
			}
			bench.rows(r, "alpha → beta")
		}
	}
	apart := 0
	text := fmt.Sprintf("%-22s %-11s %-11s %34s %34s %7s\n", "contender", "test", "figure", "lab", "bench", "ratio")
	for _, c := range strings.Split(contenders, ",") {
		for _, f := range [][3]string{{"tcp-stream", "throughput", "1e9"}, {"tcp-rr", "rate", "1e3"}, {"tcp-rr", "p50", "1"}, {"udp-rate", "rate", "1e3"}} {
			of := c
			if c == "bare" {
				if of = "bare, no pods"; f[1] == "p50" {
					continue // the lab has the generators' first figure alone
				}
			}
			x, y := lab[[3]string{of, f[0], f[1]}], bench[[3]string{c, f[0], f[1]}]
			by, _ := strconv.ParseFloat(f[2], 64)
			verdict := "agree"
			xl, xh := result.Interval(x)
			yl, yh := result.Interval(y)
			if !(xl <= yh && yl <= xh) {
				verdict = "APART"
				apart++
			}
			show := func(s result.Samples) string {
				low, high := result.Interval(s)
				return fmt.Sprintf("%.4g [%.4g–%.4g] n=%d", result.Median(s)/by, low/by, high/by, len(s.Answered()))
			}
			text += fmt.Sprintf("%-22s %-11s %-11s %34s %34s %7.2f %s\n", of, f[0], f[1], show(x), show(y), result.Median(y)/result.Median(x), verdict)
		}
	}
	b.Log("\n" + text)
	b.ReportMetric(float64(apart), "apart")
	b.ReportMetric(0, "ns/op")
}

// knock begins a TCP connection from an address of its own, and does not wait for it. The caller closes it.
func knock(from, to string, port int) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return fd, err
	}
	if err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err == nil { // closed by a reset
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(from).As4()})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(to).As4(), Port: port})
	}
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return fd, err
	}
	return fd, nil
}

// BenchmarkStrangers measures with and without a thousand strangers a second at the agent's port, in turn. They come from the same machine, which that costs
// something by itself: what the agent adds is the difference to as many at a port where nobody listens.
func BenchmarkStrangers(b *testing.B) {
	sample, rounds := agreement(b)
	h := pinned(b)
	const stranger = "192.0.2.9"
	h.a.MustRun(b, "ip", "addr", "add", stranger+"/24", "dev", "eth0")
	const tests = "tcp-rr,udp-stream:size=600:rate=1e8"
	var pools [3]pool // alone; beside strangers at a port where nobody listens; beside strangers at the agent's
	ports := [3]int{0, 1, 8479}
	pools[0], pools[1], pools[2] = pool{}, pool{}, pool{}
	var knocked, begun atomic.Int64
	for range b.N {
		for range rounds {
			for with, port := range ports {
				ended, gone := make(chan struct{}), make(chan struct{})
				began := time.Now()
				go h.a.Do(func() {
					defer close(gone)
					if with == 0 {
						return
					}
					for n := 0; !closed(ended); n++ {
						time.Sleep(time.Until(began.Add(time.Duration(n) * time.Millisecond)))
						knocked.Add(1)
						c, err := knock(stranger, linkB, port)
						if err != nil {
							b.Error(err)
							return
						}
						// Some are answered, some not: none is waited for.
						time.AfterFunc(100*time.Millisecond, func() {
							_, _ = unix.Write(c, []byte("GET / HTTP/1.0\r\n\r\n"))
							unix.Close(c)
						})
					}
				})
				r, said, err := h.run("--contenders", "bare", "--tests", tests, "--duration", sample, "--repeat", "1")
				close(ended)
				<-gone
				if with > 0 {
					begun.Add(int64(time.Since(began)))
				}
				if r == nil || err != nil {
					b.Fatalf("%v\n%s", err, said)
				}
				pools[with].rows(r, "alpha → beta")
			}
		}
	}
	text := ""
	for _, f := range [][2]string{{"tcp-rr", "rate"}, {"tcp-rr", "p50"}, {"tcp-rr", "p99"}, {"udp-stream", "throughput"}, {"udp-stream", "loss"}} {
		k := [3]string{"bare", f[0], f[1]}
		text += fmt.Sprintf("%-11s %-11s", f[0], f[1])
		for i, name := range []string{"alone", "strangers elsewhere", "strangers"} {
			low, high := result.Interval(pools[i][k])
			text += fmt.Sprintf("  %s %.4g [%.4g–%.4g]", name, result.Median(pools[i][k]), low, high)
		}
		low, high := result.Interval(pools[2][k])
		verdict := "agree"
		if elsewhereLow, elsewhereHigh := result.Interval(pools[1][k]); elsewhereLow > high || low > elsewhereHigh {
			verdict = "APART"
		}
		text += ": the two " + verdict + "\n"
	}
	b.Logf("%d strangers, %.0f a second\n%s", knocked.Load(), float64(knocked.Load())/time.Duration(begun.Load()).Seconds(), text)
	b.ReportMetric(0, "ns/op")
}
