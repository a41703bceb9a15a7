// Package config is weft.yaml: one typed struct, read strictly, with every mistake reported at once,
// and with the origin of every effective value, so that `weft config show` can say why the daemon
// does what it does.
//
// A key whose feature this build does not have may only hold its default: a value that would be
// ignored is an error.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"weft/catalog/mode"
	"weft/internal/config/strict"
)

// Paths that hold where the configuration says nothing else.
const (
	DefaultFile     = "/etc/weft/weft.yaml"
	DefaultNodes    = "/etc/weft/nodes.yaml"
	DefaultSocket   = "/run/weft/weft.sock"
	DefaultStateDir = "/var/lib/weft"
	DefaultKeyFile  = "/var/lib/weft/key"
	DefaultPolicies = "/etc/weft/policies.yaml"
)

// Config is the effective configuration of one daemon.
type Config struct {
	Node       Node
	Network    Network
	Mode       mode.Mode   // the first of Modes
	Modes      []mode.Mode // by which packets are carried, the preferred first; Port is the one in use once detected
	Queues     int         // queue pairs; ≥ 1 once detected
	Encryption Encryption
	Control    Control
	CNI        CNI
	Policy     Policy
	BGP        BGP
	API        API
	StateDir   string

	file    string
	built   Built
	origins map[string]Origin
}

// Node is this machine.
type Node struct {
	Name      string // the name the other nodes know it by
	Interface string // underlay interface; "" = the one that holds the node's endpoint
	MTU       int    // of the underlay, bytes; 0 = the interface's
	ProbeMTU  bool   // packets of full size find out how much the paths to the peers carry
}

// Network is the overlay.
type Network struct {
	Prefixes []netip.Prefix // inner prefixes, masked, disjoint
	VNI      uint32         // 24 bits
	Port     uint16         // UDP port of the tunnel; 0 only where the mode has none
}

// Encryption is how traffic between nodes is sealed.
type Encryption struct {
	Cipher      string // none, auto or the name of one
	Port        uint16
	KeyFile     string
	PSKFile     string
	PermitPlain []string // names of nodes that may still speak plaintext
	RekeyAfter  time.Duration
}

// Control is where the list of nodes comes from.
type Control struct {
	Kind       string
	Static     Static
	Etcd       Etcd
	Kubernetes Kubernetes
	Mesh       Mesh
	// SubnetEnv is a file to write for Flannel's CNI plugin, "" = none.
	SubnetEnv string
}

// Static is the control plane that is a file.
type Static struct{ File string }

// Etcd is the control plane that is an etcd cluster.
type Etcd struct {
	Endpoints []string // URLs
	Prefix    string   // of all keys; "" = by schema
	Schema    string   // weft or flannel
	Lease     time.Duration

	CAFile, CertFile, KeyFile string // "" = none
	Username, PasswordFile    string
}

// Kubernetes is the control plane that is a Kubernetes API server.
type Kubernetes struct {
	Kubeconfig string // "" = the pod's service account
	Server     string // HOST:PORT of the API server; "" = where the service account or the kubeconfig says, and what the kubelet says
	Schema     string // weft or flannel
}

// Mesh is the control plane without a store.
type Mesh struct {
	Join       []string // HOST or HOST:PORT of nodes to begin with; empty = this node may be the first
	Expect     int      // how many nodes there will be at least; 0 = nobody says
	Port       uint16   // UDP and TCP
	Forget     time.Duration
	AcceptFile string // another password that is taken from others, "" = none
}

// CNI is how pods are attached.
type CNI struct {
	Attach     string // routed or bridge
	SpoofCheck bool   // what pods send is checked at their links
	Masquerade bool
}

// Policy is who may speak with whom.
type Policy struct {
	Enabled bool
	Source  string // of Policy…
	File    string // of workloads and policies, absolute path

	VerdictSocket, AuthzSocket string // unix sockets that pods may ask, absolute paths; "" = none
}

// Sources of policies. All but the file are reached as the control source of that name is.
const (
	PolicyFile       = "file"
	PolicyKubernetes = kindKubernetes
	PolicyEtcd       = "etcd"
)

// API is what the daemon answers on.
type API struct {
	Socket  string // unix socket, absolute path
	Metrics string // host:port of the Prometheus endpoint, "" = none
}

// Built says what this build of weft can do; the catalog knows.
type Built struct {
	Modes       []mode.Mode
	DefaultMode string   // the name of one of them
	Controls    []string // control sources, by kind
	Features    []string // of Feature…
}

// Features that keys of the file need.
const (
	FeatureEncryption = "encryption"
	FeatureQueues     = "several queue pairs"
	FeatureCNI        = "a CNI plugin"
)

// CipherNone is the cipher of traffic that is not sealed.
const CipherNone = "none"

// Origin says where a value came from.
type Origin struct {
	From string // file, default, detected, not built
	Why  string // "weft.yaml:3", "hostname", …; may be empty
}

// Origins of a value.
const (
	FromFile     = "file"
	FromDefault  = "default"
	FromDetected = "detected"
	FromNowhere  = "not built"
)

// Load reads a file. The error lists every mistake, each on a line of its own.
func Load(file string, built Built) (*Config, error) {
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("config: %s does not exist: write one (`network: 10.244.0.0/16` is enough) or name another with --config", file)
	case err != nil:
		return nil, fmt.Errorf("config: %w", err)
	}
	return Parse(file, data, built)
}

// Parse reads the text of a file whose name is only used in messages.
func Parse(file string, data []byte, built Built) (*Config, error) {
	c := &Config{file: file, built: built, origins: map[string]Origin{}}
	doc := strict.Parse(file, data)
	r := reader{config: c, values: map[string]strict.Value{}}
	r.defaults()
	if doc.Empty() {
		doc.Fail("the file is empty: it needs at least `network: 10.244.0.0/16`, the prefix of the overlay")
	} else {
		r.read(doc.Root(), "")
		r.check(doc)
	}
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// File is the path the configuration was read from.
func (c *Config) File() string { return c.file }

// Set says whether the file itself holds the key.
func (c *Config) Set(key string) bool { return c.origins[key].From == FromFile }
