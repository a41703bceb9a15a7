package nettest

import (
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"weft/internal/kernel"
)

// sweepOnce: one look at what dead test processes left is enough for a process.
var sweepOnce sync.Once

// New returns a fresh namespace with lo up, removed when the test ends. It skips where that needs a root we
// are not, and sweeps what killed test processes left behind.
func New(t testing.TB) *NS {
	t.Helper()
	RequireRoot(t)
	ns, err := Create(testPrefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIn(t, ns.Close) })
	return ns
}

// NewCluster builds a cluster that goes when the test ends.
func NewCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	RequireRoot(t)
	RequireKernel(t, kernel.Veth)
	if o.Bridge || o.Nodes > 2 {
		RequireKernel(t, kernel.Bridge)
	}
	c, err := Build(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIn(t, c.Close) })
	return c
}

// TwoNodes builds a cluster of two nodes joined by a veth of the given MTU (0 = 1500).
func TwoNodes(t testing.TB, mtu int) (c *Cluster, a, b *ClusterNode) {
	t.Helper()
	c = NewCluster(t, ClusterOptions{MTU: mtu})
	return c, c.Nodes[0], c.Nodes[1]
}

func closeIn(t testing.TB, stop func() error) {
	t.Helper()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Pair joins two namespaces by a veth; see Join.
func Pair(t testing.TB, a, b End, mtu int) {
	t.Helper()
	if err := Join(a, b, mtu); err != nil {
		t.Fatal(err)
	}
}

// Prefixes parses addresses with lengths, for an End: Prefixes("192.0.2.1/24", "2001:db8::1/64").
func Prefixes(text ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range text {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// MustRun is Run that ends the test on an error.
func (ns *NS) MustRun(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := ns.Run(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// MustStart is Start that ends the test on an error. The namespace's end is the process's end.
func (ns *NS) MustStart(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	p, err := ns.Start(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Patience bounds waits for what is expected to happen, and only for that: it measures nothing, and no machine is too slow for it.
const Patience = time.Minute

// Eventually waits until cond returns nil, and ends the test with cond's last error after the deadline. For what
// the kernel or another goroutine does in its own time.
func Eventually(t testing.TB, deadline time.Duration, cond func() error) {
	t.Helper()
	for end := time.Now().Add(deadline); ; {
		begin := time.Now()
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %v", deadline, err)
		}
		time.Sleep(min(max(5*time.Millisecond, 4*time.Since(begin)), time.Second)) // to look takes from what is looked for a fifth of a core at most
	}
}

// RequireRoot skips the test unless it runs as root, and sweeps up after killed tests once.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root to make network namespaces")
	}
	sweepOnce.Do(func() {
		removed, err := Sweep(testPrefix)
		if err != nil {
			t.Logf("sweep: %v", err)
		}
		for _, name := range removed {
			t.Logf("swept namespace %s of a dead test", name)
		}
	})
}

// RequireKernel skips the test, with the reason, where this kernel lacks an ability.
func RequireKernel(t testing.TB, abilities ...kernel.Ability) {
	t.Helper()
	RequireRoot(t)
	if err := kernel.Need(abilities...); err != nil {
		Skip(t, err.Error())
	}
}

// RequireLong skips the test where WEFT_TEST_LONG, with which scripts/test-long runs, is not set; why says what it would cost.
func RequireLong(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("WEFT_TEST_LONG") == "" {
		t.Skip(why + ": WEFT_TEST_LONG=1")
	}
}

// RequireGiven returns the value of an environment variable, by which scripts/test-long says where a program is that no package has. It skips the test
// where it is not set.
func RequireGiven(t testing.TB, variable string) string {
	t.Helper()
	file := os.Getenv(variable)
	if file == "" {
		t.Skipf("%s does not say where the program is: scripts/test-long builds it, and runs this", variable)
	}
	return file
}

// RequireTool skips the test where a program is not installed.
func RequireTool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Skip(t, err.Error())
		}
	}
}

// Skip skips the test, or fails it where WEFT_TEST_NO_SKIP=1 says that nothing may be missing.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("WEFT_TEST_NO_SKIP") == "1" {
		t.Fatalf("would skip, and WEFT_TEST_NO_SKIP=1: %s", reason)
	}
	t.Skip(reason)
}
