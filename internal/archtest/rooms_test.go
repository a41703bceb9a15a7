// Package archtest keeps the house standing: which room may import what.
package archtest

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "weft"

// Third-party modules a room may use are listed by package path, exactly; a trailing "/..." allows
// what is below it. Everything is listed, tests included: a package that is not in this table fails
// the test, so that a new room is decided, not found.
type room struct {
	code  []string // what the package may import
	tests []string // what its tests may import besides
}

var (
	// Any test may use these.
	anyTest = []string{"internal/kernel", "internal/nettest", "golang.org/x/sys/unix", "go.uber.org/zap/..."}

	gopacket = "github.com/gopacket/gopacket/..." // an oracle of tests, and the writer of captures
	unix     = "golang.org/x/sys/unix"
	zap      = "go.uber.org/zap"
	nl       = "github.com/vishvananda/netlink/..."
	netns    = "github.com/vishvananda/netns"

	rooms = map[string]room{
		// the vocabulary
		"packet":              {tests: []string{"packet/packettest", gopacket}},
		"packet/packettest":   {code: []string{"packet"}, tests: []string{gopacket}},
		"control":             {},
		"control/controltest": {code: []string{"control"}},
		"backend/status":      {},
		"backend":             {code: []string{"backend/status", "catalog/mode", "control", "dataplane", "packet", "hostnet/egress", "hostnet", "reach", unix, zap}},

		// who may speak with whom: knows no kernel and no Kubernetes
		"policy":            {[]string{"internal/config/strict"}, []string{"policy/policytest"}},
		"policy/policytest": {code: []string{"policy"}},
		"policy/nft":        {[]string{"hostnet", "policy", unix, "github.com/google/nftables/..."}, []string{"policy/policytest"}},

		// the parts: vocabulary, ground, and the one library a part is about
		"tun":         {[]string{"packet", "internal/holder", "internal/wait", unix, nl, "github.com/songgao/water"}, []string{"packet/packettest", nl, gopacket}},
		"underlay":    {[]string{"packet", "internal/sock", "internal/steer", "internal/wait", unix, "golang.org/x/net/bpf"}, []string{"packet/packettest", nl}},
		"xdp":         {[]string{"packet", "internal/holder", "internal/sock", "internal/steer", "internal/wait", "xdp/bpf", unix, nl, "github.com/cilium/ebpf/..."}, []string{"packet/packettest", "encap/vxlan"}},
		"xdp/bpf":     {code: []string{"github.com/cilium/ebpf"}},
		"xdp/lib":     {[]string{"packet", "internal/wait", "xdp", unix, "github.com/asavie/xdp"}, []string{"packet/packettest"}},
		"bpf":         {code: []string{"github.com/cilium/ebpf"}},
		"encap/ipudp": {[]string{"packet"}, []string{"packet/packettest", gopacket}},
		"encap/vxlan": {[]string{"packet", "golang.org/x/net/bpf"}, []string{"packet/packettest", gopacket}},
		"encap/sealed": {[]string{"packet", "internal/backoff", "github.com/flynn/noise", "golang.org/x/crypto/argon2", "golang.org/x/crypto/blake2s",
			"golang.org/x/crypto/chacha20poly1305", "golang.org/x/sys/cpu", "golang.org/x/time/rate", "internal/secretfile", "internal/wholefile", unix, zap}, []string{"packet/packettest"}},
		"control/static": {[]string{"control", "internal/plainfile", "internal/config/strict", zap, "github.com/fsnotify/fsnotify"}, []string{"control/controltest"}},
		"control/etcd": {[]string{"control", "policy", "internal/backoff", "internal/secretfile", "internal/wholefile", zap, "go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/api/v3/mvccpb", "go.etcd.io/etcd/api/v3/v3rpc/rpctypes"},
			[]string{"control/controltest"}},

		// memberlist is nowhere else
		"control/mesh": {[]string{"control", "internal/backoff", "internal/wholefile", zap, "github.com/hashicorp/memberlist"}, []string{"control/controltest"}},

		// client-go is nowhere else
		"control/kubernetes": {[]string{"control", "policy", "internal/backoff", "internal/secretfile", zap, "k8s.io/api/core/v1", "k8s.io/apimachinery/pkg/...", "k8s.io/client-go/dynamic", "k8s.io/client-go/rest", "k8s.io/client-go/tools/cache",
			"k8s.io/client-go/tools/clientcmd", "k8s.io/klog/v2"}, []string{"control/controltest", "k8s.io/api/apps/v1"}},

		// the engine names no part; its tests drive the real ones
		"dataplane": {[]string{"packet", "github.com/gaissmai/bart"}, []string{"packet/packettest", "encap/ipudp", "encap/sealed", "encap/vxlan"}},

		"backend/userspace":   {code: []string{"internal/ipnet", "backend", "control", "dataplane", "packet", "hostnet/egress", "hostnet", "internal/wait", "golang.org/x/time/rate", unix, zap}},
		"backend/compose":     {code: []string{"backend", "backend/status", "control", "hostnet/egress", "hostnet", "reach/link", zap}},
		"backend/hostgw":      {code: []string{"backend", "control", "hostnet/egress", "hostnet", "reach", zap}},
		"backend/kernelvxlan": {code: []string{"internal/ipnet", "backend", "control", "packet", "hostnet/egress", "hostnet", zap}},

		// the kernel remembers what another way of it decided
		"flowcache": {[]string{"backend", "backend/status", "bpf", "control", "hostnet", nl, netns, unix, zap, "github.com/cilium/ebpf/..."}, []string{"backend/kernelvxlan", "internal/ipnet", "github.com/google/nftables/..."}},

		// what is learnt beside the membership
		"reach":      {code: []string{"control"}},
		"reach/bgp":  {code: []string{"control", "internal/config", "internal/secretfile", "reach", zap, "github.com/osrg/gobgp/v4/..."}}, // the library is nowhere else
		"reach/link": {code: []string{"control", "golang.org/x/net/ipv4", "golang.org/x/net/ipv6", unix, zap}},

		// the roof. The list of modes is data, which anybody may read
		"catalog/mode": {code: []string{"control", "packet"}},
		"catalog": {code: []string{"backend", "backend/compose", "backend/hostgw", "backend/kernelvxlan", "backend/userspace", "catalog/mode", "control", "control/etcd", "control/kubernetes", "control/mesh", "control/static", "encap/ipudp", "encap/sealed", "encap/vxlan", "flowcache",
			"internal/config", "internal/steer", "node/policies", "packet", "policy", "reach/link", "tun", "underlay", "xdp", "xdp/lib", zap}, tests: []string{"hostnet"}},
		"cmd/weft": {[]string{"backend", "catalog", "catalog/mode", "control", "control/kubernetes", "perf/compare", "perf/contender", "perf/contender/wireguardgo", "perf/model", "perf/probe", "perf/report", "perf/result", "perf/history", "perf/run", "perf/scenario", "perf/watch", "perf/agent", "perf/site", "perf/site/netns", "perf/site/remote", "perf/testbed",
			"api", "internal/backoff", "internal/config", "internal/config/strict", "node/daemon", "insight/doctor", "insight/filter", "hostnet", "internal/wholefile", "packet", "policy",
			"github.com/spf13/cobra/...", "github.com/spf13/pflag", "golang.org/x/term", unix, zap, "go.uber.org/zap/zapcore"}, []string{"dataplane", "node/metrics", "insight/trace"}},

		// the CNI plugin is a process of its own: it asks the daemon
		"deploy/box":   {},
		"deploy/image": {},
		"cnibin":       {code: []string{"internal/ipnet", "api", "github.com/containernetworking/cni/pkg/..."}},

		// the lab runs contenders as processes: it sees no part
		"perf/run":                   {code: []string{"perf/machine", "perf/probe", "perf/result", "perf/site"}},
		"perf/site":                  {code: []string{"perf/machine", "perf/probe", "perf/result"}},
		"perf/site/remote":           {code: []string{"perf/agent", "perf/machine", "perf/probe", "perf/result", "perf/run", "perf/site"}, tests: []string{"perf/history", "perf/testbed"}},
		"perf/agent":                 {code: []string{"catalog/mode", "internal/backoff", "internal/secretfile", "perf/contender", "perf/machine", "perf/probe", "perf/result", "perf/site", "perf/testbed", "golang.org/x/time/rate", unix, zap}},
		"perf/watch":                 {code: []string{"api", "internal/scrape", "perf/history", "perf/report", "perf/result", "github.com/prometheus/client_golang/prometheus", zap}, tests: []string{"perf/probe", "github.com/prometheus/client_golang/prometheus/..."}},
		"perf/site/netns":            {code: []string{"perf/contender", "perf/machine", "perf/probe", "perf/result", "perf/run", "perf/site", "perf/testbed", unix}},
		"perf/machine":               {code: []string{"perf/result", unix}},
		"perf/contender":             {code: []string{"internal/ipnet", "catalog/mode", "internal/kernel", "perf/site", "perf/testbed", "api", "golang.zx2c4.com/wireguard/wgctrl/...", nl, netns, unix}},
		"perf/contender/wireguardgo": {code: []string{"golang.zx2c4.com/wireguard/..."}}, // the library is nowhere else
		"perf/probe":                 {code: []string{unix}},
		"perf/scenario":              {code: []string{"perf/contender", "perf/probe", "perf/testbed", "internal/config/strict"}},
		"perf/testbed":               {code: []string{"internal/ipnet", "internal/netlab", "perf/machine", "perf/site", nl, unix}},

		// what shows and compares results: TestResultsStandAlone says what may not be below them
		"perf/result":  {code: []string{"perf/probe"}},
		"perf/history": {code: []string{"internal/wholefile", "perf/result", "perf/probe"}},
		"perf/compare": {code: []string{"perf/result", "perf/probe", "golang.org/x/perf/benchmath", "github.com/aclements/go-moremath/stats"}},
		"perf/report":  {code: []string{"perf/history", "perf/result", "perf/probe", "github.com/jedib0t/go-pretty/v6/..."}, tests: []string{"golang.org/x/net/html/..."}},
		"perf/model":   {code: []string{"perf/result", "perf/probe", "internal/config/strict", "gonum.org/v1/gonum/stat/..."}},

		// what one node does, and what other processes may ask of it
		"api": {code: []string{"backend/status", "policy", "reach"}},
		"node/daemon": {[]string{"backend", "backend/status", "catalog/mode", "control", "control/mesh", "dataplane", "api", "internal/backoff", "insight/capture", "internal/config", "internal/ipnet", "hostnet/egress", "hostnet", "node/metrics", "node/pods", "node/pathmtu", "node/policies", "node/probe", "node/systemd", "node/verdict", "node/verdict/authz", "policy", "reach/bgp", "reach/link", "internal/txloss", "internal/wholefile",
			"insight/filter", "insight/trace", "internal/wholefile", "packet", "golang.org/x/sync/errgroup", unix, zap}, []string{"catalog/mode"}},
		"node/metrics":       {[]string{"api", "internal/scrape", "github.com/prometheus/client_golang/prometheus"}, []string{"policy", "reach", "github.com/prometheus/client_golang/prometheus/..."}}, // what is scraped: internal/scrape answers
		"node/pods":          {code: []string{"node/probe", "internal/holder", "internal/plainfile", "internal/ipnet", "control", "api", "hostnet", nl, netns, unix, zap, "github.com/google/nftables/...", "go.etcd.io/bbolt/..."}, tests: []string{gopacket}},
		"node/policies":      {[]string{"hostnet", "internal/plainfile", "policy", "policy/nft", unix, zap, "golang.org/x/time/rate"}, []string{nl}},
		"node/verdict":       {code: []string{"policy", unix, zap}},
		"node/verdict/authz": {code: []string{"node/verdict", "policy", "github.com/envoyproxy/go-control-plane/envoy/...", "google.golang.org/genproto/googleapis/rpc/status", "google.golang.org/grpc/..."}},
		"node/pathmtu":       {code: []string{"internal/echo", zap}},
		"node/systemd":       {code: []string{"github.com/coreos/go-systemd/v22/daemon", unix}},
		"node/probe":         {code: []string{"internal/backoff", "internal/echo", "internal/ipnet", "hostnet", nl, netns, unix, zap, "github.com/google/nftables/..."}},

		// what explains a node
		"insight/capture": {[]string{"backend", "dataplane", "packet", "insight/filter", gopacket}, []string{"packet/packettest", "encap/vxlan"}},
		"insight/doctor":  {code: []string{"catalog/mode", "control", "internal/echo", "internal/holder", "internal/kernel", "api", "internal/config", "hostnet/egress", "hostnet", "internal/sock", "packet", nl, unix}},
		"insight/filter":  {code: []string{"internal/ipnet", "packet"}},
		"insight/trace":   {code: []string{"backend", "catalog/mode", "control", "dataplane", "packet", "api", "insight/filter", "hostnet", unix}, tests: []string{gopacket}},

		// the kernel: one owner
		"hostnet/egress": {code: []string{"control", "packet", "hostnet", "internal/sock", unix}},
		"hostnet": {code: []string{"internal/holder", "internal/ipnet", "internal/backoff", nl, netns, unix, zap, "github.com/cilium/ebpf", "github.com/cilium/ebpf/link", "github.com/google/nftables/...",
			"github.com/mdlayher/netlink"}, tests: []string{"github.com/cilium/ebpf/asm", "internal/netlab"}},

		// the ground
		"internal/archtest":      {tests: []string{"catalog/mode"}},
		"internal/backoff":       {},
		"internal/config":        {code: []string{"catalog/mode", "control", "packet", "internal/config/strict"}},
		"internal/config/strict": {code: []string{"github.com/goccy/go-yaml/..."}},
		"internal/echo":          {code: []string{unix}},
		"internal/e2e":           {tests: []string{"policy", "hostnet/egress", "catalog", "catalog/mode", "api", "golang.org/x/crypto/blake2s", "control", "github.com/containernetworking/cni/...", gopacket}},
		"internal/ipnet":         {},
		"internal/kernel":        {[]string{nl, unix, "github.com/google/nftables"}, []string{"catalog/mode"}},
		"internal/netlab":        {code: []string{"internal/ipnet", nl, netns, unix}},
		"internal/nettest":       {[]string{"internal/ipnet", "internal/kernel", "internal/netlab", nl, unix}, []string{netns}},
		"internal/scrape":        {[]string{"internal/holder", "github.com/prometheus/client_golang/prometheus/..."}, nil},
		"internal/holder":        {[]string{nl, unix}, nil},
		"internal/sock":          {code: []string{"internal/holder", unix, "golang.org/x/net/bpf"}},
		"internal/plainfile":     {code: []string{unix}},
		"internal/secretfile":    {code: []string{"internal/plainfile", unix}},
		"internal/steer":         {code: []string{"internal/sock", "packet", "golang.org/x/net/bpf"}},
		"internal/txloss":        {code: []string{nl, netns, unix}},
		"internal/wait":          {code: []string{unix}, tests: []string{"packet/packettest"}},

		// renameio is nowhere else
		"internal/wholefile": {code: []string{unix, "github.com/google/renameio/v2"}},
	}
)

// TestRooms must run with -count=1: go test caches a result that depends on other packages' sources.
func TestRooms(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		room := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, listed := rooms[room]
		if !listed {
			t.Errorf("%s is not in the table of rooms: decide what it may import and list it", room)
			continue
		}
		seen[room] = true
		check(t, room, "", p.Imports, allowed.code)
		check(t, room, " in tests", append(p.TestImports, p.XTestImports...), allowed.code, allowed.tests, anyTest)
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("%s is in the table but not in the house", room)
		}
	}
}

func check(t *testing.T, room, where string, imports []string, allowed ...[]string) {
	for _, imp := range imports {
		name := strings.TrimPrefix(imp, module+"/")
		first, _, _ := strings.Cut(imp, "/")
		ours, thirdParty := name != imp, strings.Contains(first, ".")
		if !ours && !thirdParty || name == room {
			continue
		}
		if !slices.ContainsFunc(allowed, func(list []string) bool { return permits(list, name) }) {
			t.Errorf("%s may not import %s%s", room, name, where)
		}
	}
}

// permits says whether the list holds the name, or a "prefix/..." above it.
func permits(list []string, name string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		above, tree := strings.CutSuffix(a, "/...")
		return a == name || tree && (name == above || strings.HasPrefix(name, above+"/"))
	})
}

// TestPermits plants violations: a check that cannot fail keeps no house.
func TestPermits(t *testing.T) {
	list := []string{"packet", "example.org/lib/..."}
	for name, want := range map[string]bool{
		"packet": true, "packet/packettest": false, "packe": false,
		"example.org/lib": true, "example.org/lib/sub": true, "example.org/library": false,
	} {
		if got := permits(list, name); got != want {
			t.Errorf("permits(%q) = %v, want %v", name, got, want)
		}
	}
}

// TestResultsStandAlone: what shows, compares and explains results needs neither the kernel's interfaces nor a cluster's.
func TestResultsStandAlone(t *testing.T) {
	for _, room := range []string{"perf/result", "perf/history", "perf/report", "perf/compare", "perf/model"} {
		out, err := exec.Command("go", "list", "-deps", module+"/"+room).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		below := strings.Fields(string(out))
		if len(below) < 10 {
			t.Fatalf("only %d packages are below %s", len(below), room)
		}
		for _, p := range below {
			for _, heavy := range []string{"netlink", "netns", "ebpf", "k8s.io", "nftables", "etcd"} {
				if strings.Contains(p, heavy) {
					t.Errorf("%s is below %s", p, room)
				}
			}
		}
	}
}
