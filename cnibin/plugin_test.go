package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"weft/api"
)

// TestMain makes the test binary the plugin itself where a test calls it so.
func TestMain(m *testing.M) {
	if os.Getenv("WEFT_CNI_PLUGIN") != "" {
		os.Exit(run(os.Stdout))
	}
	os.Exit(m.Run())
}

// ledger answers as a daemon does, over the real socket and protocol, and keeps attachments without
// touching the kernel: what the plugin makes of answers is under test here. The namespace suites
// hold the plugin to a real daemon.
type ledger struct {
	socket string

	mu       sync.Mutex
	pods     map[api.Attachment]api.AttachRequest
	known    map[api.Attachment]bool // announced
	refuse   *api.Error              // answer of attach
	status   api.PodStatus
	mismatch bool
	garbled  bool // attach does it, but its answer cannot be read
}

func newLedger(t *testing.T) *ledger {
	t.Helper()
	l := &ledger{socket: filepath.Join(t.TempDir(), "sock"), pods: map[api.Attachment]api.AttachRequest{}, known: map[api.Attachment]bool{}, status: api.PodStatus{Ready: true}}
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(l.serve)}
	go s.Serve(listener)
	t.Cleanup(func() { s.Close() })
	return l
}

func (l *ledger) serve(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	answer, err := l.answer(r)
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		answer = map[string]string{"error": err.Text, "code": err.Code}
	}
	json.NewEncoder(w).Encode(answer)
}

func (l *ledger) answer(r *http.Request) (any, *api.Error) {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	read := func(v any) {
		if err := dec.Decode(v); err != nil {
			panic(err)
		}
	}
	switch r.URL.Path {
	case "/v1/pods":
		list := []api.Pod{}
		for at, q := range l.pods {
			list = append(list, api.Pod{Network: q.Network, ContainerID: at.ContainerID, IfName: at.IfName, Attached: true})
		}
		for at := range l.known {
			if _, ok := l.pods[at]; !ok {
				list = append(list, api.Pod{Network: "weft", ContainerID: at.ContainerID, IfName: at.IfName})
			}
		}
		return list, nil
	case "/v1/pods/announce":
		var q api.AnnounceRequest
		read(&q)
		l.known[api.Attachment{ContainerID: q.ContainerID, IfName: q.IfName}] = true
		return struct{}{}, nil
	case "/v1/pods/status":
		return l.status, nil
	case "/v1/pods/attach":
		var q api.AttachRequest
		read(&q)
		if l.refuse != nil {
			return nil, l.refuse
		}
		l.pods[api.Attachment{ContainerID: q.ContainerID, IfName: q.IfName}] = q
		if l.garbled {
			return []int{1}, nil
		}
		return attached(q), nil
	case "/v1/pods/detach":
		var q api.DetachRequest
		read(&q)
		at := api.Attachment{ContainerID: q.ContainerID, IfName: q.IfName}
		delete(l.pods, at)
		if !q.Keep {
			delete(l.known, at)
		}
		return struct{}{}, nil
	case "/v1/pods/check":
		var q api.CheckRequest
		read(&q)
		if _, ok := l.pods[api.Attachment{ContainerID: q.ContainerID, IfName: q.IfName}]; !ok {
			return nil, &api.Error{Code: api.CodeNotFound, Text: "not attached"}
		}
		if l.mismatch || q.Expect.PodInterface.MAC != "02:00:00:00:00:01" || len(q.Expect.IPs) == 0 || q.Expect.HostInterface != "weft1" {
			return nil, &api.Error{Code: api.CodeMismatch, Text: "it differs"}
		}
		return struct{}{}, nil
	case "/v1/pods/gc":
		var q api.GCRequest
		read(&q)
		stale := func(at api.Attachment) bool { return !slices.Contains(q.Valid, at) }
		maps.DeleteFunc(l.pods, func(at api.Attachment, _ api.AttachRequest) bool { return stale(at) })
		maps.DeleteFunc(l.known, func(at api.Attachment, _ bool) bool { return stale(at) })
		return struct{}{}, nil
	}
	return nil, &api.Error{Code: api.CodeInvalid, Text: r.URL.Path}
}

// attached is the answer to a request: the addresses it asks for, or one of each family.
func attached(q api.AttachRequest) api.AttachResult {
	r := api.AttachResult{HostInterface: "weft1", PodInterface: api.PodInterface{Name: q.IfName, MAC: "02:00:00:00:00:01", Netns: q.Netns}, MTU: 1450}
	ips := q.IPs
	for _, d := range q.Delegated {
		ips = append(ips, d.Address)
	}
	if len(ips) == 0 {
		ips = []netip.Prefix{netip.MustParsePrefix("10.244.1.2/32"), netip.MustParsePrefix("fd00:10:244:1::2/128")}
	}
	gateway := netip.MustParseAddr("169.254.1.1")
	for _, ip := range ips {
		r.IPs = append(r.IPs, api.PodIP{Address: ip, Gateway: gateway})
	}
	for _, dst := range append(slices.Clone(q.Routes), netip.MustParsePrefix("0.0.0.0/0")) {
		r.Routes = append(r.Routes, api.PodRoute{Dst: dst, Gateway: gateway})
	}
	return r
}

func (l *ledger) get(id string) (api.AttachRequest, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q, ok := l.pods[api.Attachment{ContainerID: id, IfName: "eth0"}]
	return q, ok
}

// call is one call of the plugin.
type call struct {
	command string
	env     map[string]string // over the usual ones; "" takes one away
	conf    string
}

type answer struct {
	code int // of the process
	raw  string
	log  string
	body struct {
		CNIVersion        string
		Code              uint
		Msg, Details      string
		SupportedVersions []string
		Interfaces        []struct {
			Name, Mac, Sandbox string
			Mtu                int
		}
		IPs []struct {
			Address, Gateway, Version string
			Interface                 *int
		}
		Routes []struct{ Dst, GW string }
		DNS    struct {
			Nameservers, Search, Options []string
			Domain                       string
		}
	}
}

func (c call) run(t *testing.T) (a answer) {
	t.Helper()
	netns := filepath.Join(t.TempDir(), "netns") // a file is enough: no kernel here
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"CNI_COMMAND": c.command, "CNI_CONTAINERID": "box-1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni", "WEFT_CNI_PLUGIN": "1",
		"GORACE": "atexit_sleep_ms=0"} // the race detector's second at every exit is for goroutines that outlive main
	for k, v := range c.env {
		env[k] = v
	}
	cmd := exec.Command(os.Args[0])
	for k, v := range env {
		if v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	var out, log bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.conf), &out, &log
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	a.code, a.raw, a.log = cmd.ProcessState.ExitCode(), out.String(), log.String()
	if a.raw != "" {
		if err := json.Unmarshal(out.Bytes(), &a.body); err != nil {
			t.Fatalf("%s: standard output is not one JSON object: %v: %s", c.command, err, a.raw)
		}
	}
	return a
}

// refused runs a call that must fail, and checks all that the specification says of errors.
func (c call) refused(t *testing.T, code uint, words ...string) answer {
	t.Helper()
	a := c.run(t)
	if a.code == 0 || a.body.Code != code || a.body.CNIVersion == "" || a.body.Msg == "" {
		t.Errorf("%s: exit %d, %s: want code %d", c.command, a.code, a.raw, code)
	}
	for _, w := range words {
		if !strings.Contains(a.body.Msg+" "+a.body.Details, w) {
			t.Errorf("%s: %s: want %q in it", c.command, a.raw, w)
		}
	}
	return a
}

func (c call) done(t *testing.T) answer {
	t.Helper()
	a := c.run(t)
	if a.code != 0 {
		t.Errorf("%s: exit %d: %s", c.command, a.code, a.raw)
	}
	return a
}

// conf writes a configuration with more keys.
func (l *ledger) conf(v, more string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"weft","type":"weft-cni","socket":%q%s}`, v, l.socket, more)
}

// none is what GC is told where no attachment is valid.
const none = `,"cni.dev/valid-attachments":[]`

func TestEnvironment(t *testing.T) {
	l := newLedger(t)
	ok := l.conf("1.1.0", "")
	needs := map[string][]string{
		"ADD":   {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
		"CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"},
		"DEL":   {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"},
		"GC":    {"CNI_PATH"},
	}
	for command, list := range needs {
		for _, name := range list {
			call{command, map[string]string{name: ""}, ok}.refused(t, 4, name)
		}
	}
	call{"DEL", map[string]string{"CNI_NETNS": ""}, ok}.done(t)
	bare := map[string]string{"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}
	call{"GC", bare, l.conf("1.1.0", none)}.done(t)
	call{"STATUS", bare, ok}.done(t)
	bare["CNI_PATH"] = ""
	call{"STATUS", bare, ok}.done(t)

	for _, id := range []string{"-box", "a b", "a/b", "ä"} {
		call{"ADD", map[string]string{"CNI_CONTAINERID": id}, ok}.refused(t, 4)
	}
	for _, name := range []string{".", "..", "a/b", "a:b", "a b", "sixteen-letters-"} {
		call{"ADD", map[string]string{"CNI_IFNAME": name}, ok}.refused(t, 4)
	}
	call{"MOVE", nil, ok}.refused(t, 4, "MOVE")
	a := call{"", nil, ""}.done(t)
	if a.raw != "" || !strings.Contains(a.log, "weft-cni") {
		t.Errorf("without a command: %q and %q", a.raw, a.log)
	}
	call{"ADD", map[string]string{"CNI_NETNS": "/proc/self/ns/net"}, ok}.refused(t, 8, "own network namespace")
	call{"DEL", map[string]string{"CNI_NETNS": "/proc/self/ns/net"}, ok}.refused(t, 8)
	if len(l.pods) != 0 {
		t.Errorf("attached by refused calls: %v", l.pods)
	}
	call{"ADD", map[string]string{"CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": "true"}, ok}.done(t)
	call{"ADD", map[string]string{"CNI_NETNS": "/run/netns/none"}, l.conf("1.1.0", `,"ipam":{"type":"never-called"}`)}.refused(t, 3, "/run/netns/none")
}

func TestVersions(t *testing.T) {
	l := newLedger(t)
	a := call{"VERSION", nil, "no JSON at all"}.done(t)
	if !slices.Equal(a.body.SupportedVersions, versions) || a.body.CNIVersion == "" {
		t.Errorf("VERSION: %s", a.raw)
	}
	for _, v := range versions {
		a := call{"ADD", map[string]string{"CNI_CONTAINERID": "v" + v}, l.conf(v, "")}.done(t)
		b := a.body
		if b.CNIVersion != v || len(b.Interfaces) != 2 || len(b.IPs) != 2 || b.IPs[0].Interface == nil || *b.IPs[0].Interface != 1 {
			t.Errorf("%s: %s", v, a.raw)
			continue
		}
		if i := b.Interfaces[1]; i.Name != "eth0" || i.Sandbox == "" || i.Mac == "" || (i.Mtu == 1450) != (v == "1.1.0") {
			t.Errorf("%s: %+v", v, i)
		}
		if old := v < "1.0.0"; (b.IPs[0].Version == "4") != old || (b.IPs[1].Version == "6") != old {
			t.Errorf("%s: %s: ips[].version is for 0.3 and 0.4", v, a.raw)
		}
		wrong := call{"ADD", map[string]string{"CNI_CONTAINERID": "w"}, l.conf(v, `,"subnet":1`)}.refused(t, 2)
		if wrong.body.CNIVersion != v {
			t.Errorf("%s: an error in version %q", v, wrong.body.CNIVersion)
		}
	}
	for _, v := range []string{"0.2.0", "9.9.9"} {
		call{"ADD", nil, l.conf(v, "")}.refused(t, 1, "1.1.0")
	}
	call{"CHECK", nil, l.conf("0.3.1", "")}.refused(t, 1, "CHECK")
	call{"GC", nil, l.conf("1.0.0", "")}.refused(t, 1, "GC")
	call{"STATUS", nil, l.conf("1.0.0", "")}.refused(t, 1, "STATUS")
}

func TestConfiguration(t *testing.T) {
	l := newLedger(t)
	for conf, want := range map[string]struct {
		code  uint
		words []string
	}{
		`{`:                               {6, nil},
		`{"cniVersion":"1.1.0"}`:          {7, []string{"name"}},
		l.conf("1.1.0", `,"ipMasq":true`): {2, []string{"ipMasq", "true"}},
		l.conf("1.1.0", `,"mtu":"x"`):     {6, []string{"mtu"}},
		l.conf("1.1.0", `,"mtu":-1`):      {7, []string{"mtu"}},
		l.conf("1.1.0", `,"ipam":{"subnet":"10.0.0.0/8"}`):                           {7, []string{"type"}},
		l.conf("1.1.0", `,"ipam":{"type":"weft-cni"}`):                               {7, []string{"ipam"}},
		l.conf("1.1.0", `,"ipam":{"type":"not-there"}`):                              {999, []string{"not-there"}},
		l.conf("1.1.0", `,"runtimeConfig":{"portMappings":[{"hostPort":80}]}`):       {2, []string{"portMappings", "80", "portmap"}},
		l.conf("1.1.0", `,"runtimeConfig":{"bandwidth":{"ingressRate":1}}`):          {2, []string{"bandwidth"}},
		l.conf("1.1.0", `,"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/8"}]]}`): {2, []string{"ipRanges"}},
		l.conf("1.1.0", `,"runtimeConfig":{"ips":["x"]}`):                            {7, []string{"x"}},
		l.conf("1.1.0", `,"runtimeConfig":{"mac":"x"}`):                              {7, []string{"x"}},
		l.conf("1.1.0", `,"prevResult":{"cniVersion":"1.1.0","ips":3}`):              {6, nil},
	} {
		call{"ADD", nil, conf}.refused(t, want.code, want.words...)
	}
	for args, word := range map[string]string{"IP=x": "x", "MAC=x": "x", "Unknown=1": "Unknown", "IP": "IP"} {
		call{"ADD", map[string]string{"CNI_ARGS": args}, l.conf("1.1.0", "")}.refused(t, 4, word)
	}
	if len(l.pods) != 0 {
		t.Errorf("attached by refused calls: %v", l.pods)
	}
	call{"ADD", map[string]string{"CNI_ARGS": "IgnoreUnknown=1;Unknown=1"}, l.conf("1.1.0",
		`,"capabilities":{"ips":true},"args":{"x":1},"runtimeConfig":{"portMappings":[],"aliases":["a"]},"cni.dev/x":1,"ipam":{},"dns":{}`)}.done(t)
}

func TestWishes(t *testing.T) {
	l := newLedger(t)
	env := map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u;IP=10.244.1.9;MAC=02:00:00:00:00:09"}
	ask := func(more string) api.AttachRequest {
		t.Helper()
		call{"ADD", env, l.conf("1.1.0", more)}.done(t)
		q, _ := l.get("box-1")
		call{"DEL", env, l.conf("1.1.0", more)}.done(t)
		return q
	}
	q := ask(`,"mtu":1300`)
	if q.PodNamespace != "shop" || q.PodName != "web-0" || q.Network != "weft" || q.MTU != 1300 || q.MAC != "02:00:00:00:00:09" ||
		!slices.Equal(q.IPs, []netip.Prefix{netip.MustParsePrefix("10.244.1.9/32")}) {
		t.Errorf("CNI_ARGS: %+v", q)
	}
	q = ask(`,"args":{"cni":{"ips":["10.244.1.8"]}}`)
	if !slices.Equal(q.IPs, []netip.Prefix{netip.MustParsePrefix("10.244.1.8/32")}) {
		t.Errorf("args.cni.ips wins over CNI_ARGS: %v", q.IPs)
	}
	q = ask(`,"args":{"cni":{"ips":["10.244.1.8"]}},"runtimeConfig":{"ips":["10.244.1.7/24","fd00::7"],"mac":"02:00:00:00:00:07"}`)
	if len(q.IPs) != 2 || q.IPs[0].Addr() != netip.MustParseAddr("10.244.1.7") || q.MAC != "02:00:00:00:00:07" {
		t.Errorf("runtimeConfig wins: %+v", q)
	}
}

func TestNameServers(t *testing.T) {
	l := newLedger(t)
	a := call{"ADD", nil, l.conf("1.0.0", `,"dns":{"nameservers":["10.0.0.10"],"domain":"d","search":["s"],"options":["o"]}`)}.done(t)
	if d := a.body.DNS; !slices.Equal(d.Nameservers, []string{"10.0.0.10"}) || d.Domain != "d" || len(d.Search) != 1 || len(d.Options) != 1 {
		t.Errorf("dns is passed through: %s", a.raw)
	}
	call{"DEL", nil, l.conf("1.0.0", "")}.done(t)
	a = call{"ADD", nil, l.conf("1.0.0", `,"dns":{"nameservers":["10.0.0.10"]},"runtimeConfig":{"dns":{"servers":["10.0.0.11"],"searches":["t"]}}`)}.done(t)
	if d := a.body.DNS; !slices.Equal(d.Nameservers, []string{"10.0.0.11"}) || !slices.Equal(d.Search, []string{"t"}) {
		t.Errorf("the runtime's dns wins: %s", a.raw)
	}
}

func TestErrorsOfTheDaemon(t *testing.T) {
	l := newLedger(t)
	for code, want := range map[string]uint{api.CodeUnavailable: 11, api.CodeExhausted: 100, api.CodeNotInPrefix: 101, api.CodeExists: 102,
		api.CodeMismatch: 103, api.CodeNoNetns: 3, api.CodeInvalid: 7, api.CodeFailed: 999} {
		l.refuse = &api.Error{Code: code, Text: "because of " + code}
		call{"ADD", nil, l.conf("1.1.0", "")}.refused(t, want, "because of "+code)
	}
	l.refuse = nil
	for _, code := range []string{api.CodeUnavailable, api.CodeExhausted} {
		l.status = api.PodStatus{Code: code, Reason: "none today"}
		call{"STATUS", nil, l.conf("1.1.0", "")}.refused(t, 50, "none today", code)
	}
	l.garbled = true
	call{"ADD", nil, l.conf("1.1.0", "")}.refused(t, 999)
	if len(l.pods) != 0 {
		t.Errorf("left by failed calls: %v", l.pods)
	}

	l.socket = filepath.Join(t.TempDir(), "absent")
	call{"ADD", nil, l.conf("1.1.0", "")}.refused(t, 11, l.socket)
	call{"DEL", nil, l.conf("1.1.0", "")}.refused(t, 11)
	call{"GC", nil, l.conf("1.1.0", none)}.refused(t, 11)
	call{"STATUS", nil, l.conf("1.1.0", "")}.refused(t, 50, l.socket)
}

// TestLife is ADD, CHECK, DEL and GC of one network.
func TestLife(t *testing.T) {
	l := newLedger(t)
	netns := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"CNI_NETNS": netns}
	a := call{"ADD", env, l.conf("1.1.0", "")}.done(t)
	call{"ADD", env, l.conf("1.1.0", "")}.refused(t, 102, "box-1", "eth0")
	if _, ok := l.get("box-1"); !ok {
		t.Error("a refused second ADD took the first away")
	}
	prev := func(raw string) string { return l.conf("1.1.0", `,"prevResult":`+raw) }
	call{"CHECK", env, prev(a.raw)}.done(t)
	// A plugin after us has added an interface and said so.
	later := strings.Replace(a.raw, `"interfaces": [`, `"interfaces": [{"name":"ifb0"},`, 1)
	later = strings.ReplaceAll(later, `"interface": 1`, `"interface": 2`)
	call{"CHECK", env, prev(later)}.done(t)
	call{"CHECK", env, l.conf("1.1.0", "")}.refused(t, 7, "prevResult")
	call{"CHECK", env, prev(strings.ReplaceAll(a.raw, `"eth0"`, `"eth1"`))}.refused(t, 7, "eth0")
	l.mismatch = true
	call{"CHECK", env, prev(a.raw)}.refused(t, 103)

	for range 2 { // repeated, and without prevResult
		call{"DEL", env, l.conf("1.1.0", "")}.done(t)
	}
	if _, ok := l.get("box-1"); ok {
		t.Error("DEL left it attached")
	}
	call{"CHECK", env, prev(a.raw)}.refused(t, 3)
	call{"DEL", map[string]string{"CNI_NETNS": "/run/netns/none", "CNI_CONTAINERID": "never"}, l.conf("1.1.0", "")}.done(t)

	for _, id := range []string{"a", "b", "c"} {
		call{"ADD", map[string]string{"CNI_CONTAINERID": id}, l.conf("1.1.0", "")}.done(t)
	}
	call{"GC", nil, l.conf("1.1.0", "")}.refused(t, 7, "cni.dev/valid-attachments")
	if len(l.pods) != 3 {
		t.Errorf("after GC without a list: %v", l.pods)
	}
	g := call{"GC", nil, l.conf("1.1.0", `,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"cni.dev/attachments":[{"containerID":"b","ifname":"eth0"}]`)}.done(t)
	if _, b := l.get("b"); !b || len(l.pods) != 2 || g.raw != "" {
		t.Errorf("after GC: %v, output %q", l.pods, g.raw)
	}
	for _, nothing := range []string{"null", "[]"} { // libcni sends null where the runtime has no pods
		call{"ADD", map[string]string{"CNI_CONTAINERID": "d"}, l.conf("1.1.0", "")}.done(t)
		call{"GC", nil, l.conf("1.1.0", `,"cni.dev/valid-attachments":`+nothing)}.done(t)
		if len(l.pods) != 0 {
			t.Errorf("after GC with %s: %v", nothing, l.pods)
		}
	}
}

// TestChain is a configuration in which another plugin comes before: what it reported is passed on.
func TestChain(t *testing.T) {
	l := newLedger(t)
	a := call{"ADD", nil, l.conf("1.0.0", `,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"x0"}],"ips":[{"address":"192.0.2.9/24","interface":0}],"dns":{"nameservers":["192.0.2.53"]}}`)}.done(t)
	b := a.body
	if len(b.Interfaces) != 3 || b.Interfaces[0].Name != "x0" || len(b.IPs) != 3 || *b.IPs[1].Interface != 2 || len(b.DNS.Nameservers) != 1 {
		t.Errorf("%s", a.raw)
	}
}

// TestDelegate runs Debian's host-local as the ipam plugin.
func TestDelegate(t *testing.T) {
	if _, err := os.Stat("/usr/lib/cni/host-local"); err != nil {
		t.Fatalf("%v: install containernetworking-plugins", err)
	}
	l := newLedger(t)
	dir := t.TempDir()
	conf := func(v, routes string) string {
		return l.conf(v, fmt.Sprintf(`,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.9.0.0/29","gateway":"10.9.0.1"}]],"routes":[%s]}`, dir, routes))
	}
	taken := func() (n int) {
		list, _ := filepath.Glob(filepath.Join(dir, "weft", "10.9.*"))
		return len(list)
	}
	plain := conf("1.0.0", `{"dst":"0.0.0.0/0"},{"dst":"198.51.100.0/24","gw":"10.9.0.1"}`)
	a := call{"ADD", nil, plain}.done(t)
	q, _ := l.get("box-1")
	if len(q.Delegated) != 1 || q.Delegated[0].Address != netip.MustParsePrefix("10.9.0.2/29") || q.Delegated[0].Gateway != netip.MustParseAddr("10.9.0.1") ||
		!slices.Equal(q.Routes, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}) || len(a.body.IPs) != 1 {
		t.Errorf("asked the daemon %+v, answered %s", q, a.raw)
	}
	call{"ADD", nil, plain}.refused(t, 102)
	if taken() != 1 {
		t.Errorf("%d addresses taken after a refused second ADD, want that of the first", taken())
	}
	other := map[string]string{"CNI_CONTAINERID": "box-2"}
	l.refuse = &api.Error{Code: api.CodeFailed, Text: "no"}
	call{"ADD", other, plain}.refused(t, 999)
	l.refuse = nil
	l.garbled = true
	call{"ADD", other, plain}.refused(t, 999)
	call{"DEL", other, plain}.done(t)
	l.garbled = false
	call{"ADD", other, conf("1.0.0", `{"dst":"198.51.100.0/24","gw":"10.9.0.5"}`)}.refused(t, 7, "198.51.100.0")
	if taken() != 1 {
		t.Errorf("%d addresses taken after failed ADDs, want 1", taken())
	}
	ip := map[string]string{"CNI_CONTAINERID": "box-2", "CNI_ARGS": "IP=10.9.0.4"} // the plugin's to read
	call{"ADD", ip, plain}.done(t)
	if q, _ := l.get("box-2"); len(q.IPs) != 0 || q.Delegated[0].Address.Addr() != netip.MustParseAddr("10.9.0.4") {
		t.Errorf("%+v", q)
	}
	for _, id := range []string{"box-3", "box-4", "box-5"} {
		call{"ADD", map[string]string{"CNI_CONTAINERID": id}, plain}.done(t)
	}
	call{"ADD", map[string]string{"CNI_CONTAINERID": "box-6"}, plain}.refused(t, 999, "host-local")
	if taken() != 5 {
		t.Errorf("%d addresses taken, want 5", taken())
	}
	l.status = api.PodStatus{Code: api.CodeExhausted, Reason: "not what counts here"}
	socket := l.socket
	l.socket = filepath.Join(dir, "absent")
	call{"DEL", nil, conf("1.0.0", "")}.refused(t, 11)
	if taken() != 5 {
		t.Error("an address was given back while the interface may be there")
	}
	call{"DEL", map[string]string{"CNI_NETNS": "/run/netns/none"}, conf("1.0.0", "")}.refused(t, 11)
	if taken() != 4 {
		t.Error("the address of a dead namespace was kept")
	}
	l.socket = socket
	for _, id := range []string{"box-1", "box-2", "box-3", "box-4", "box-5"} {
		call{"DEL", map[string]string{"CNI_CONTAINERID": id}, plain}.done(t)
	}
	if taken() != 0 || len(l.pods) != 0 || len(l.known) != 0 {
		t.Errorf("left: %d addresses, %v, %v", taken(), l.pods, l.known)
	}
}

// TestDelegateOf11: CHECK, STATUS and GC are passed on to an ipam plugin of CNI 1.1, and GC has it give back what goes, also
// of calls that were cut off. Debian's plugins do not know 1.1: a script writes down how it is called, and fails where it is told to.
func TestDelegateOf11(t *testing.T) {
	l := newLedger(t)
	dir := t.TempDir()
	script := `#!/bin/sh
cd ` + dir + `
[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' && exit
echo "$CNI_COMMAND $CNI_CONTAINERID" >>calls
if [ -e "fail-$CNI_COMMAND$CNI_CONTAINERID" ]; then echo '{"cniVersion":"1.1.0","code":50,"msg":"out of order"}'; exit 1; fi
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.9.0.2/29","gateway":"10.9.0.1"}]}'
exit 0
`
	if err := os.WriteFile(filepath.Join(dir, "recorder"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	netns := filepath.Join(dir, "netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	conf := func(more string) string { return l.conf("1.1.0", `,"ipam":{"type":"recorder"}`+more) }
	env := func(id string) map[string]string {
		return map[string]string{"CNI_CONTAINERID": id, "CNI_PATH": dir, "CNI_NETNS": netns}
	}
	wantCalls := func(what, want string) {
		t.Helper()
		file := filepath.Join(dir, "calls")
		got, err := os.ReadFile(file)
		if text := strings.Join(strings.Fields(string(got)), " "); err != nil || text != want {
			t.Errorf("%s: called as %q, %v; want %q", what, text, err, want)
		}
		os.Remove(file)
	}
	fail := func(on bool, call string) {
		t.Helper()
		file := filepath.Join(dir, "fail-"+call)
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if on {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	fail(true, "ADDa")
	call{"ADD", env("a"), conf("")}.refused(t, 50, "recorder", "out of order")
	wantCalls("an ADD that fails", "ADD a DEL a")
	if len(l.known) != 0 {
		t.Errorf("a failed ADD left %v", l.known)
	}
	fail(false, "ADDa")
	a := call{"ADD", env("a"), conf("")}.done(t)
	call{"ADD", env("b"), conf("")}.done(t)
	wantCalls("ADD", "ADD a ADD b")

	call{"CHECK", env("a"), conf(`,"prevResult":` + a.raw)}.done(t)
	fail(true, "CHECKa")
	call{"CHECK", env("a"), conf(`,"prevResult":` + a.raw)}.refused(t, 50, "out of order")
	wantCalls("CHECK", "CHECK a CHECK a")

	alone := map[string]string{"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": "", "CNI_PATH": dir}
	l.status = api.PodStatus{Code: api.CodeExhausted, Reason: "not what counts here"}
	call{"STATUS", alone, conf("")}.done(t)
	fail(true, "STATUS")
	call{"STATUS", alone, conf("")}.refused(t, 50, "recorder", "out of order")
	wantCalls("STATUS", "STATUS STATUS")

	l.known[api.Attachment{ContainerID: "cut", IfName: "eth0"}] = true // its ADD was killed
	fail(true, "DELa")
	call{"GC", alone, conf(none)}.refused(t, 50, "DEL of a eth0", "out of order")
	if len(l.pods) != 0 || len(l.known) != 1 || !l.known[api.Attachment{ContainerID: "a", IfName: "eth0"}] {
		t.Errorf("after a GC that a was stuck in: %v, %v", l.pods, l.known)
	}
	os.Remove(filepath.Join(dir, "calls")) // in the order of a map
	fail(false, "DELa")
	fail(true, "GC")
	call{"GC", alone, conf(none)}.refused(t, 50, "GC: out of order")
	wantCalls("GC again", "DEL a GC")
	if len(l.known) != 0 {
		t.Errorf("after GC: %v", l.known)
	}
	l.socket = filepath.Join(dir, "absent")
	call{"CHECK", env("a"), conf(`,"prevResult":` + a.raw)}.refused(t, 11, l.socket)
}

func FuzzConfiguration(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"weft","type":"weft-cni","mtu":1400,"ipam":{"type":"x"},"dns":{"domain":"d"}}`), "IP=10.0.0.1;K8S_POD_NAME=x")
	f.Add([]byte(`{"cniVersion":"0.4.0","runtimeConfig":{"ips":["::1/64"],"mac":"02:00:00:00:00:01"},"prevResult":{"interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"version":"4","address":"10.0.0.1/24","interface":0}]}}`), "")
	f.Fuzz(func(t *testing.T, data []byte, args string) {
		c, err := decode(data)
		if err != nil {
			return
		}
		if _, err := c.podRequest(&skel.CmdArgs{Args: args}); err != nil {
			return
		}
		if c.PrevResult != nil {
			expectation(c.PrevResult, "eth0", "/n")
			if _, err := result(api.AttachResult{}, c.PrevResult, c.dns(c.DNS), "1.1.0"); err != nil {
				t.Logf("%v", err)
			}
		}
	})
}
