package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"weft/catalog/mode"
	"weft/internal/config"
	"weft/internal/config/strict"
)

// slim is a build with little in it, full one with everything.
var (
	slim = config.Built{Modes: some("tun", "vxlan"), DefaultMode: "tun", Controls: []string{"static"}}
	full = config.Built{
		Modes:       mode.All(),
		DefaultMode: mode.Default,
		Controls:    []string{"static", "etcd", "kubernetes", "mesh"},
		Features:    []string{config.FeatureEncryption, config.FeatureQueues, config.FeatureCNI},
	}
)

// some are the modes of these names.
func some(names ...string) (modes []mode.Mode) {
	for _, name := range names {
		m, _ := mode.Find(mode.All(), name)
		modes = append(modes, m)
	}
	return modes
}

// contract is every key with the value the documentation shows.
const contract = `
node:     {name: "", interface: "", mtu: 0}
network:  {prefixes: [10.244.0.0/16], vni: 1, port: 0}
mode:     tun
queues:   0
encryption: {cipher: none, port: 8473, key_file: /var/lib/weft/key, psk_file: "", permit_plaintext_from: [], rekey_after: 2m}
control:
  kind: static
  static: {file: /etc/weft/nodes.yaml}
  etcd: {endpoints: ["http://127.0.0.1:2379"], prefix: "", schema: weft, lease: 1h, ca_file: "", cert_file: "", key_file: "", username: "", password_file: ""}
  mesh: {join: [], expect: 0, port: 4786, forget_after: 24h, accept_psk_file: ""}
  subnet_env: ""
cni:      {attach: routed, masquerade: true, spoofcheck: true}
policy:   {enabled: false, source: file, file: /etc/weft/policies.yaml, verdict_socket: "", authz_socket: ""}
bgp:      {as: 0, router_id: "", mesh: true, password_file: "", peers: []}
api:      {socket: /run/weft/weft.sock, metrics: 127.0.0.1:9470}
state_dir: /var/lib/weft
`

// Writing a default down changes nothing, in a build that serves the key and in one that does not.
func TestDefaultsWrittenDown(t *testing.T) {
	for _, built := range []config.Built{slim, full} {
		written, err := config.Parse("weft.yaml", []byte(contract), built)
		if err != nil {
			t.Fatal(err)
		}
		short, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\nmode: tun"), built)
		if err != nil {
			t.Fatal(err)
		}
		a, b := written.Show(), short.Show()
		for i := range a {
			if fmt.Sprint(a[i].Key, a[i].Value) != fmt.Sprint(b[i].Key, b[i].Value) {
				t.Errorf("%s: written %v, default %v", a[i].Key, a[i].Value, b[i].Value)
			}
		}
	}
}

func TestValues(t *testing.T) {
	c, err := config.Parse("weft.yaml", []byte(`
node:     {name: a, interface: eth1, mtu: 9000, probe_mtu: false}
network:  {prefixes: [10.0.0.0/8, "fd00::/48"], vni: 16777215, port: 8472}
mode:     xdp
queues:   4
encryption:
  cipher: auto
  port: 1
  key_file: /k
  psk_file: /p
  permit_plaintext_from: [old.example, b]
  rekey_after: 30s
control:
  static: {file: /n}
  etcd: {endpoints: ["https://[2001:db8::9]:2379", "https://etcd.example:1"], prefix: /x, schema: flannel, lease: 90s, ca_file: /ca, cert_file: /c, key_file: /kk, username: u, password_file: /pw}
  kubernetes: {kubeconfig: /kc, server: "192.0.2.9:6443", schema: flannel}
  mesh: {join: ["192.0.2.1", "h.example:1", "[2001:db8::1]:4786"], expect: 5, port: 4785, forget_after: 1h, accept_psk_file: /a}
  subnet_env: /run/flannel/subnet.env
cni:      {attach: bridge, masquerade: false, spoofcheck: false}
policy:   {enabled: false, source: file, file: /pol, verdict_socket: /v, authz_socket: /z}
bgp:      {as: 0, router_id: "", mesh: true, password_file: "", peers: []}
api:      {socket: /s, metrics: ""}
state_dir: /d
`), full)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Detect(config.Host{Name: func() (string, error) { return "", errors.New("not asked") }, CPUs: 2}); err != nil {
		t.Fatal(err)
	}
	c.DetectedUnderlay("eth9", 1, "must not win over the file")
	want := []string{
		"node.name a", "node.interface eth1", "node.mtu 9000", "node.probe_mtu false", "network.prefixes [10.0.0.0/8 fd00::/48]", "network.vni 16777215",
		"network.port 8472", "mode xdp", "queues 4", "encryption.cipher auto", "encryption.port 1", "encryption.key_file /k",
		"encryption.psk_file /p", "encryption.permit_plaintext_from [old.example b]", "encryption.rekey_after 30s", "control.kind static", "control.static.file /n",
		"control.etcd.endpoints [https://[2001:db8::9]:2379 https://etcd.example:1]", "control.etcd.prefix /x", "control.etcd.schema flannel",
		"control.etcd.lease 1m30s", "control.etcd.ca_file /ca", "control.etcd.cert_file /c", "control.etcd.key_file /kk", "control.etcd.username u",
		"control.etcd.password_file /pw", "control.kubernetes.kubeconfig /kc", "control.kubernetes.server 192.0.2.9:6443", "control.kubernetes.schema flannel", "control.mesh.join [192.0.2.1 h.example:1 [2001:db8::1]:4786]", "control.mesh.expect 5",
		"control.mesh.port 4785", "control.mesh.forget_after 1h", "control.mesh.accept_psk_file /a", "control.subnet_env /run/flannel/subnet.env",
		"cni.attach bridge", "cni.masquerade false", "cni.spoofcheck false", "policy.enabled false", "policy.source file", "policy.file /pol", "policy.verdict_socket /v", "policy.authz_socket /z",
		"bgp.as 0", "bgp.router_id ", "bgp.mesh true", "bgp.password_file ", "bgp.peers []", "api.socket /s", "api.metrics ", "state_dir /d",
	}
	for i, s := range c.Show() {
		if got := fmt.Sprintf("%s %v", s.Key, s.Value); got != want[i] {
			t.Errorf("got %q, want %q", got, want[i])
		}
		if wantFrom := map[bool]string{true: config.FromDefault, false: config.FromFile}[s.Key == "control.kind"]; s.From != wantFrom {
			t.Errorf("%s is from %s, want %s", s.Key, s.From, wantFrom)
		}
	}
	if len(want) != len(config.Keys()) {
		t.Errorf("%d keys in the test, %d in the schema", len(want), len(config.Keys()))
	}
}

func TestDetection(t *testing.T) {
	c, err := config.Parse("weft.yaml", []byte("network: fd00:10:244::/48"), full)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Detect(config.Host{Name: func() (string, error) { return "worker-1", nil }, CPUs: 8}); err != nil {
		t.Fatal(err)
	}
	c.DetectedUnderlay("eth0", 1500, "holds 192.0.2.1")
	if c.Node.Name != "worker-1" || c.Mode.Name != "tun-gso" || c.Network.Port != 4789 || c.Queues != 4 || c.Network.VNI != 1 || !c.CNI.Masquerade {
		t.Errorf("effective configuration: %+v", c)
	}
	if c.Network.Prefixes[0] != netip.MustParsePrefix("fd00:10:244::/48") {
		t.Errorf("prefixes %v", c.Network.Prefixes)
	}
	from := map[string]string{}
	for _, s := range c.Show() {
		from[s.Key] = s.From + " " + s.Why
	}
	for key, want := range map[string]string{
		"node.name": "detected the host name", "node.interface": "detected holds 192.0.2.1", "node.mtu": "detected MTU of eth0",
		"network.port": "detected mode tun-gso", "queues": "detected half of 8 cores", "network.prefixes": "file weft.yaml:1", "mode": "default ",
	} {
		if from[key] != want {
			t.Errorf("%s: %q, want %q", key, from[key], want)
		}
	}
	if data, err := json.Marshal(c.Show()); err != nil || !strings.Contains(string(data), `"value":["fd00:10:244::/48"]`) {
		t.Errorf("%v %s", err, data)
	}
}

func TestFlannelPort(t *testing.T) {
	c, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\ncontrol: {kind: etcd, etcd: {schema: flannel}}"), full)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Detect(config.Host{Name: func() (string, error) { return "a", nil }, CPUs: 1}); err != nil || c.Network.Port != 8472 {
		t.Errorf("port %d, %v", c.Network.Port, err)
	}
}

// A pod is told the name of its node; nobody else listens to that.
func TestNodeNameInAPod(t *testing.T) {
	for kind, want := range map[string]string{"kubernetes": "node-1", "etcd": "host"} {
		c, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\ncontrol: {kind: "+kind+", kubernetes: {schema: flannel}}"), full)
		if err != nil {
			t.Fatal(err)
		}
		host := config.Host{Name: func() (string, error) { return "host", nil }, NodeName: "node-1", CPUs: 1}
		if err := c.Detect(host); err != nil || c.Node.Name != want || (c.Network.Port == 8472) != (kind == "kubernetes") {
			t.Errorf("%s: node %q, port %d, %v", kind, c.Node.Name, c.Network.Port, err)
		}
	}
}

func TestDetectionWithoutAName(t *testing.T) {
	for _, h := range []config.Host{
		{Name: func() (string, error) { return "", errors.New("uname failed") }},
		{Name: func() (string, error) { return "not a name", nil }},
	} {
		c, err := config.Parse("weft.yaml", []byte("network: 10.0.0.0/8"), slim)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Detect(h); err == nil || !strings.Contains(err.Error(), "set node.name") {
			t.Errorf("got %v", err)
		}
	}
}

func TestUnbuiltIsSaid(t *testing.T) {
	c, err := config.Parse("weft.yaml", []byte("network: 10.0.0.0/8\nencryption: {cipher: none}"), slim)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Show() {
		unbuilt := s.Key == "queues" || strings.HasPrefix(s.Key, "encryption.") || strings.HasPrefix(s.Key, "cni.")
		if unbuilt != (s.From == config.FromNowhere) {
			t.Errorf("%s is from %q", s.Key, s.From)
		}
	}
}

func TestMistakes(t *testing.T) {
	const net = "network: 10.244.0.0/16\n"
	for name, c := range map[string]struct {
		in    string
		built config.Built
		want  []string
	}{
		"empty":            {"", slim, []string{"weft.yaml: the file is empty: it needs at least `network: 10.244.0.0/16`"}},
		"comment":          {"# x", slim, []string{"weft.yaml: the file is empty"}},
		"no network":       {"mode: tun", slim, []string{"weft.yaml: network.prefixes is missing"}},
		"not a mapping":    {"- a", slim, []string{"weft.yaml:1: is a list, wants keys: node, network, mode"}},
		"no prefixes":      {"network: {prefixes: []}", slim, []string{"weft.yaml:1: network.prefixes: is empty"}},
		"unknown key":      {net + "mod: tun", slim, []string{"weft.yaml:2: mod: unknown key: did you mean mode?"}},
		"unknown below":    {net + "api:\n  sockt: /x", slim, []string{"weft.yaml:3: api.sockt: unknown key: did you mean socket?"}},
		"section as text":  {net + "node: a", slim, []string{`weft.yaml:2: node: is the text "a", wants keys: name, interface, mtu`}},
		"address":          {"network: 10.244.0.1", slim, []string{`weft.yaml:1: network: "10.244.0.1" is an address: write a prefix, 10.244.0.0/16 say`}},
		"v6 address":       {`network: "fd00::1"`, slim, []string{`weft.yaml:1: network: "fd00::1" is an address: write a prefix, fd00::/48 say`}},
		"no prefix":        {"network: home", slim, []string{`weft.yaml:1: network: "home" is not a prefix: write it like`}},
		"host bits":        {"network: 10.244.3.0/16", slim, []string{"weft.yaml:1: network: 10.244.3.0/16 has bits set behind its length: write 10.244.0.0/16"}},
		"long prefix":      {"network: 10.244.0.0/33", slim, []string{"weft.yaml:1: network: \"10.244.0.0/33\" is not a prefix"}},
		"everything":       {"network: 0.0.0.0/0", slim, []string{"weft.yaml:1: network: 0.0.0.0/0 is the whole internet"}},
		"multicast":        {"network: 224.0.0.0/8", slim, []string{"weft.yaml:1: network: 224.0.0.0/8 is not a range that hosts may use"}},
		"loopback":         {"network: 127.0.0.0/8", slim, []string{"weft.yaml:1: network: 127.0.0.0/8 is not a range"}},
		"mapped":           {`network: "::ffff:10.0.0.0/104"`, slim, []string{"weft.yaml:1: network: ::ffff:10.0.0.0/104 is an IPv4 prefix in IPv6 clothes"}},
		"overlap":          {"network:\n  prefixes:\n  - 10.0.0.0/8\n  - 10.244.0.0/16", slim, []string{"weft.yaml:4: network.prefixes[1]: 10.244.0.0/16 overlaps 10.0.0.0/8"}},
		"vni 0":            {"network: {prefixes: [10.0.0.0/8], vni: 0}", slim, []string{"weft.yaml:1: network.vni: 0 is out of range: write 1 to 16777215"}},
		"vni large":        {"network: {prefixes: [10.0.0.0/8], vni: 16777216}", slim, []string{"weft.yaml:1: network.vni: 16777216 is out of range"}},
		"port":             {"network: {prefixes: [10.0.0.0/8], port: 65536}", slim, []string{"weft.yaml:1: network.port: 65536 is out of range"}},
		"port as text":     {"network: {prefixes: [10.0.0.0/8], port: \"80\"}", slim, []string{`weft.yaml:1: network.port: is the text "80", wants a whole number`}},
		"port of host-gw":  {"mode: host-gw\nnetwork:\n  prefixes: [10.0.0.0/8]\n  port: 80", full, []string{"weft.yaml:4: network.port: mode host-gw sends no UDP: remove the key"}},
		"unbuilt mode":     {net + "mode: xdp", slim, []string{"weft.yaml:2: mode: \"xdp\" is not a mode: write one of tun, vxlan"}},
		"unknown mode":     {net + "mode: vxlna", slim, []string{`weft.yaml:2: mode: "vxlna" is not a mode: did you mean vxlan?`}},
		"mode with cipher": {net + "mode: tun+aes-256-gcm", full, []string{"weft.yaml:2: mode: \"tun+aes-256-gcm\" names a cipher: write `mode: tun` and `encryption: {cipher: aes-256-gcm}`"}},
		"queues":           {net + "queues: 2", slim, []string{"weft.yaml:2: queues: this weft is built without several queue pairs: remove the key"}},
		"cipher unbuilt":   {net + "encryption: {cipher: auto}", slim, []string{"weft.yaml:2: encryption.cipher: this weft is built without encryption: remove the key"}},
		"psk unbuilt":      {net + "encryption:\n  psk_file: /p", slim, []string{"weft.yaml:3: encryption.psk_file: this weft is built without encryption"}},
		"permit unbuilt":   {net + "encryption:\n  permit_plaintext_from: [a]", slim, []string{"weft.yaml:3: encryption.permit_plaintext_from: this weft is built without encryption"}},
		"cipher unknown":   {net + "encryption: {cipher: aes-256-gmc}", full, []string{`weft.yaml:2: encryption.cipher: "aes-256-gmc" is unknown: did you mean aes-256-gcm?`}},
		"cipher in kernel": {net + "mode: vxlan\nencryption: {cipher: auto}\n", full, []string{"weft.yaml:3: encryption.cipher: mode vxlan cannot seal"}},
		"sealed port":      {net + "mode: tun\nencryption: {cipher: auto, port: 4789}\n", full, []string{"weft.yaml:3: encryption.port: is the plain tunnel's port too"}},
		"same ports":       {"network: {prefixes: [10.0.0.0/8], port: 9}\nencryption: {cipher: auto, port: 9}", full, []string{"weft.yaml:2: encryption.port: is the plain tunnel's port too"}},
		"cni unbuilt":      {net + "cni: {attach: bridge}", slim, []string{"weft.yaml:2: cni.attach: this weft is built without a CNI plugin"}},
		"attach unknown":   {net + "cni: {attach: routd}", full, []string{`weft.yaml:2: cni.attach: "routd" is unknown: did you mean routed?`}},
		"policy elsewhere": {net + "policy: {enabled: true, source: etcd, file: /p}", full, []string{"weft.yaml:2: policy.file: policies come from etcd: remove the key"}},
		"policy bridged":   {net + "cni: {attach: bridge}\npolicy: {enabled: true}", full, []string{"weft.yaml:3: policy.enabled: network policy cannot be enforced among bridged pods"}},
		"masquerade":       {net + "cni: {masquerade: 1}", full, []string{"weft.yaml:2: cni.masquerade: is the number 1, wants true or false"}},
		"metrics":          {net + "api: {metrics: \"9470\"}", full, []string{`weft.yaml:2: api.metrics: "9470" is not host:port`}},
		"control":          {net + "control: {kind: statik}", slim, []string{`weft.yaml:2: control.kind: this weft has no control source "statik": did you mean static?`}},
		"etcd":             {net + "control: {kind: etcd}", slim, []string{`weft.yaml:2: control.kind: this weft has no control source "etcd": write one of static`}},
		"mesh alone":       {net + "control: {kind: mesh}", full, []string{"weft.yaml:2: control.kind: the mesh has no password: write encryption: {psk_file: /etc/weft/password}"}},
		"mesh host":        {net + "control: {mesh: {join: [\"http://a\"]}}", full, []string{`weft.yaml:2: control.mesh.join[0]: "http://a" is not a host`}},
		"mesh port":        {net + "encryption: {psk_file: /p}\ncontrol: {kind: mesh, mesh: {port: 4789}}", full, []string{"weft.yaml:3: control.kind: control.mesh.port 4789 is the tunnel's too"}},
		"forget":           {net + "control: {mesh: {forget_after: 1s}}", full, []string{`weft.yaml:2: control.mesh.forget_after: "1s" is not a length of time from 10m to 8760h`}},
		"etcd endpoint":    {net + "control: {etcd: {endpoints: [\"127.0.0.1:2379\"]}}", full, []string{`weft.yaml:2: control.etcd.endpoints[0]: "127.0.0.1:2379" is not a server's URL: write https://HOST:PORT`}},
		"no etcd endpoint": {net + "control: {etcd: {endpoints: []}}", full, []string{"weft.yaml:2: control.etcd.endpoints: is empty"}},
		"mixed endpoints":  {net + "control: {etcd: {endpoints: [\"http://a:1\", \"https://b:1\"]}}", full, []string{"weft.yaml:2: control.etcd.endpoints: http://a:1 and https://b:1: write http or https"}},
		"lease":            {net + "control: {etcd: {lease: 1s}}", full, []string{`weft.yaml:2: control.etcd.lease: "1s" is not a length of time from 3s to 8760h`}},
		"cert alone":       {net + "control: {etcd: {cert_file: /c}}", full, []string{"weft.yaml:2: control.etcd.cert_file: a certificate and its key go together"}},
		"password alone":   {net + "control: {etcd: {password_file: /p}}", full, []string{"weft.yaml:2: control.etcd.password_file: is nobody's password"}},
		"schema":           {net + "control: {etcd: {schema: flanel}}", full, []string{`weft.yaml:2: control.etcd.schema: "flanel" is unknown: did you mean flannel?`}},
		"kubernetes mode":  {net + "mode: udp\ncontrol: {kind: kubernetes, kubernetes: {schema: flannel}}", full, []string{"weft.yaml:3: control.kubernetes.schema: Flannel's nodes speak VXLAN here, mode udp does not"}},
		"kubeconfig":       {net + "control: {kubernetes: {kubeconfig: here, node_name: x}}", full, []string{"weft.yaml:2: control.kubernetes.node_name: unknown key", `weft.yaml:2: control.kubernetes.kubeconfig: "here" is not an absolute path`}},
		"api server":       {net + "control: {kubernetes: {server: \"https://a:1\"}}", full, []string{`weft.yaml:2: control.kubernetes.server: "https://a:1" is not host:port`}},
		"flannel mode":     {net + "mode: udp\ncontrol: {kind: etcd, etcd: {schema: flannel}}", full, []string{"weft.yaml:3: control.etcd.schema: Flannel's nodes speak VXLAN here, mode udp does not"}},
		"flannel v6":       {"network: \"fd00::/48\"\ncontrol: {kind: etcd, etcd: {schema: flannel}}", full, []string{"weft.yaml:2: control.etcd.schema: Flannel's networks have one IPv4 prefix"}},
		"relative path":    {net + "control: {static: {file: nodes.yaml}}", slim, []string{`weft.yaml:2: control.static.file: "nodes.yaml" is not an absolute path`}},
		"empty path":       {net + `state_dir: ""`, slim, []string{"weft.yaml:2: state_dir: is empty"}},
		"long socket":      {net + "api: {socket: /" + strings.Repeat("x", 107) + "}", slim, []string{"weft.yaml:2: api.socket: the name behind the last / is longer than 85 bytes"}},
		"interface":        {net + "node: {interface: averylonginterface}", slim, []string{`weft.yaml:2: node.interface: "averylonginterface" is not an interface name`}},
		"node name":        {net + "node: {name: a b}", slim, []string{`weft.yaml:2: node.name: "a b" is not a node name`}},
		"number as name":   {net + "node: {name: 7}", slim, []string{`weft.yaml:2: node.name: is the number 7, wants a text: write "7" in quotes`}},
		"mtu v4":           {net + "mode: vxlan\nnode: {mtu: 625}", slim, []string{"weft.yaml:3: node.mtu: 625 leaves 575 bytes inside, IPv4 needs 576: write at least 626, or 0"}},
		"mtu v4 enough":    {net + "mode: vxlan\nnode: {mtu: 626}", slim, nil},
		"mtu v6":           {"network: {prefixes: [\"fd00::/48\"]}\nnode: {mtu: 1329}", slim, []string{"weft.yaml:2: node.mtu: 1329 leaves 1279 bytes inside, IPv6 needs 1280: write at least 1330"}},
		"mtu v6 enough":    {"network: {prefixes: [\"fd00::/48\"]}\nnode: {mtu: 1330}", slim, nil},
		"mtu host-gw":      {"network: {prefixes: [\"fd00::/48\"]}\nmode: host-gw\nnode: {mtu: 1280}", full, nil},
		"mtu large":        {net + "node: {mtu: 65536}", slim, []string{"weft.yaml:2: node.mtu: 65536 is out of range: write 0 to 65535"}},
		"syntax":           {"network: [", slim, []string{"weft.yaml:1: not YAML: "}},
		"all at once": {"network: 10.0.0.0/33\nmode: nope\nnodes: []\nnode: {mtu: -1, nam: a}\nstate_dir: x", slim, []string{
			"weft.yaml:1: network:", "weft.yaml:2: mode:", "weft.yaml:3: nodes: unknown key: did you mean node?", "weft.yaml:4: node.nam:", "weft.yaml:4: node.mtu:", "weft.yaml:5: state_dir:"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("weft.yaml", []byte(c.in), c.built)
			var errs strict.Errors
			if !errors.As(err, &errs) && err != nil || len(errs) != len(c.want) {
				t.Fatalf("got:\n%v\nwant %q", err, c.want)
			}
			for i := range errs {
				if !strings.HasPrefix(errs[i].Error(), c.want[i]) {
					t.Errorf("got  %s\nwant %s", errs[i], c.want[i])
				}
			}
		})
	}
}

func TestLoadNamesTheRemedy(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "none.yaml"), slim)
	if err == nil || !strings.Contains(err.Error(), "does not exist: write one") {
		t.Errorf("got %v", err)
	}
}

// FuzzParse: whatever the file says, what is accepted is within the bounds the rest relies on.
func FuzzParse(f *testing.F) {
	for _, s := range []string{contract, "network: 10.0.0.0/8", "network: {prefixes: [\"fd00::/8\"], vni: 7}\nnode: {mtu: 1400}", "mode: [", "node: {name: &a x}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse("weft.yaml", data, full)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a word")
			}
			return
		}
		if len(c.Network.Prefixes) == 0 || c.Network.VNI == 0 || c.Network.VNI >= 1<<24 || c.StateDir == "" || c.API.Socket == "" || c.Mode.Name == "" {
			t.Errorf("accepted %+v", c)
		}
		for i, p := range c.Network.Prefixes {
			for _, q := range c.Network.Prefixes[:i] {
				if p.Overlaps(q) {
					t.Errorf("accepted %v and %v", p, q)
				}
			}
			if !p.IsValid() || p != p.Masked() || p.Bits() == 0 {
				t.Errorf("accepted %v", p)
			}
		}
	})
}
