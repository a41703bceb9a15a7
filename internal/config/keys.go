package config

import (
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/catalog/mode"
	"weft/control"
	"weft/internal/config/strict"
)

// key is one leaf of weft.yaml. The table below is the schema: parsing, `config show`, suggestions
// and docs/reference.md follow it.
type key struct {
	name    string // dotted path
	feature string // what must be built for another value than the default; "" = always there
	initial string // the default in YAML, "" where it is computed
	read    func(*Config, strict.Value)
	get     func(*Config) any
}

// maxSocketName bounds a socket's last element: with it, the folder's descriptor has to fit into sun_path of unix(7), whatever
// the folder's path is. api has the same figure.
const maxSocketName = 85

// leastRekey and mostRekey bound encryption.rekey_after: a handshake costs 0.3 ms on each side, and keys end after three minutes.
const leastRekey, mostRekey = time.Second, 2 * time.Minute

func keys() []key {
	return slices.Concat([]key{
		{name: "node.name", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Node.Name, nodeName) },
			get:  func(c *Config) any { return c.Node.Name }},
		{name: "node.interface", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Node.Interface, interfaceName) },
			get:  func(c *Config) any { return c.Node.Interface }},
		{name: "node.mtu", initial: "0",
			read: func(c *Config, v strict.Value) { number(v, &c.Node.MTU, 0, 65535) },
			get:  func(c *Config) any { return c.Node.MTU }},
		{name: "node.probe_mtu", initial: "true",
			read: func(c *Config, v strict.Value) {
				if b, ok := v.Bool(); ok {
					c.Node.ProbeMTU = b
				}
			},
			get: func(c *Config) any { return c.Node.ProbeMTU }},
		{name: "network.prefixes",
			read: readPrefixes,
			get:  func(c *Config) any { return c.Network.Prefixes }},
		{name: "network.vni", initial: "1",
			read: func(c *Config, v strict.Value) { number(v, &c.Network.VNI, 1, 1<<24-1) },
			get:  func(c *Config) any { return c.Network.VNI }},
		{name: "network.port", initial: "0",
			read: func(c *Config, v strict.Value) { number(v, &c.Network.Port, 0, 65535) },
			get:  func(c *Config) any { return c.Network.Port }},
		{name: "mode",
			read: readMode,
			get: func(c *Config) any {
				if len(c.Modes) == 1 {
					return c.Mode.Name
				}
				return mode.Names(c.Modes)
			}},
		{name: "queues", initial: "0", feature: FeatureQueues,
			read: func(c *Config, v strict.Value) { number(v, &c.Queues, 0, 256) },
			get:  func(c *Config) any { return c.Queues }},
		{name: "encryption.cipher", initial: "none", feature: FeatureEncryption,
			read: func(c *Config, v strict.Value) {
				choice(v, &c.Encryption.Cipher, append([]string{CipherNone}, mode.Ciphers()...)...)
			},
			get: func(c *Config) any { return c.Encryption.Cipher }},
		{name: "encryption.port", initial: "8473", feature: FeatureEncryption,
			read: func(c *Config, v strict.Value) { number(v, &c.Encryption.Port, 1, 65535) },
			get:  func(c *Config) any { return c.Encryption.Port }},
		{name: "encryption.key_file", initial: DefaultKeyFile, feature: FeatureEncryption,
			read: func(c *Config, v strict.Value) { text(v, &c.Encryption.KeyFile, absolute) },
			get:  func(c *Config) any { return c.Encryption.KeyFile }},
		{name: "encryption.psk_file", initial: `""`, feature: FeatureEncryption,
			read: func(c *Config, v strict.Value) { text(v, &c.Encryption.PSKFile, absolute) },
			get:  func(c *Config) any { return c.Encryption.PSKFile }},
		{name: "encryption.permit_plaintext_from", initial: "[]", feature: FeatureEncryption,
			read: readPermitPlain,
			get:  func(c *Config) any { return c.Encryption.PermitPlain }},
		{name: "encryption.rekey_after", initial: "2m", feature: FeatureEncryption,
			read: func(c *Config, v strict.Value) { duration(v, &c.Encryption.RekeyAfter, leastRekey, mostRekey) },
			get:  func(c *Config) any { return short(c.Encryption.RekeyAfter) }},
		{name: "control.kind", initial: "static",
			read: readControlKind,
			get:  func(c *Config) any { return c.Control.Kind }},
		{name: "control.static.file", initial: DefaultNodes,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Static.File, absolute, notEmpty) },
			get:  func(c *Config) any { return c.Control.Static.File }},
		{name: "control.etcd.endpoints", initial: `["http://127.0.0.1:2379"]`,
			read: readEndpoints,
			get:  func(c *Config) any { return c.Control.Etcd.Endpoints }},
		{name: "control.etcd.prefix", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Etcd.Prefix, absolute) },
			get:  func(c *Config) any { return c.Control.Etcd.Prefix }},
		{name: "control.etcd.schema", initial: SchemaWeft,
			read: func(c *Config, v strict.Value) { choice(v, &c.Control.Etcd.Schema, SchemaWeft, SchemaFlannel) },
			get:  func(c *Config) any { return c.Control.Etcd.Schema }},
		{name: "control.etcd.lease", initial: "1h",
			read: func(c *Config, v strict.Value) { duration(v, &c.Control.Etcd.Lease, leastLease, mostLease) },
			get:  func(c *Config) any { return short(c.Control.Etcd.Lease) }},
		{name: "control.etcd.ca_file", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Etcd.CAFile, absolute) },
			get:  func(c *Config) any { return c.Control.Etcd.CAFile }},
		{name: "control.etcd.cert_file", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Etcd.CertFile, absolute) },
			get:  func(c *Config) any { return c.Control.Etcd.CertFile }},
		{name: "control.etcd.key_file", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Etcd.KeyFile, absolute) },
			get:  func(c *Config) any { return c.Control.Etcd.KeyFile }},
		{name: "control.etcd.username", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Etcd.Username) },
			get:  func(c *Config) any { return c.Control.Etcd.Username }},
		{name: "control.etcd.password_file", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Etcd.PasswordFile, absolute) },
			get:  func(c *Config) any { return c.Control.Etcd.PasswordFile }},
		{name: "control.kubernetes.kubeconfig", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Kubernetes.Kubeconfig, absolute) },
			get:  func(c *Config) any { return c.Control.Kubernetes.Kubeconfig }},
		{name: "control.kubernetes.server", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Kubernetes.Server, hostPort) },
			get:  func(c *Config) any { return c.Control.Kubernetes.Server }},
		{name: "control.kubernetes.schema", initial: SchemaWeft,
			read: func(c *Config, v strict.Value) { choice(v, &c.Control.Kubernetes.Schema, SchemaWeft, SchemaFlannel) },
			get:  func(c *Config) any { return c.Control.Kubernetes.Schema }},
		{name: "control.mesh.join", initial: "[]",
			read: readJoin,
			get:  func(c *Config) any { return c.Control.Mesh.Join }},
		{name: "control.mesh.expect", initial: "0",
			read: func(c *Config, v strict.Value) { number(v, &c.Control.Mesh.Expect, 0, 5000) },
			get:  func(c *Config) any { return c.Control.Mesh.Expect }},
		{name: "control.mesh.port", initial: "4786",
			read: func(c *Config, v strict.Value) { number(v, &c.Control.Mesh.Port, 1, 65535) },
			get:  func(c *Config) any { return c.Control.Mesh.Port }},
		{name: "control.mesh.forget_after", initial: "24h",
			read: func(c *Config, v strict.Value) { duration(v, &c.Control.Mesh.Forget, leastForget, mostLease) },
			get:  func(c *Config) any { return short(c.Control.Mesh.Forget) }},
		{name: "control.mesh.accept_psk_file", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.Mesh.AcceptFile, absolute) },
			get:  func(c *Config) any { return c.Control.Mesh.AcceptFile }},
		{name: "control.subnet_env", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Control.SubnetEnv, absolute) },
			get:  func(c *Config) any { return c.Control.SubnetEnv }},
		{name: "cni.attach", initial: "routed", feature: FeatureCNI,
			read: func(c *Config, v strict.Value) { choice(v, &c.CNI.Attach, "routed", "bridge") },
			get:  func(c *Config) any { return c.CNI.Attach }},
		{name: "cni.masquerade", initial: "true", feature: FeatureCNI,
			read: func(c *Config, v strict.Value) {
				if b, ok := v.Bool(); ok {
					c.CNI.Masquerade = b
				}
			},
			get: func(c *Config) any { return c.CNI.Masquerade }},
		{name: "cni.spoofcheck", initial: "true", feature: FeatureCNI,
			read: func(c *Config, v strict.Value) {
				if b, ok := v.Bool(); ok {
					c.CNI.SpoofCheck = b
				}
			},
			get: func(c *Config) any { return c.CNI.SpoofCheck }},
		{name: "policy.enabled", initial: "false",
			read: func(c *Config, v strict.Value) {
				if b, ok := v.Bool(); ok {
					c.Policy.Enabled = b
				}
			},
			get: func(c *Config) any { return c.Policy.Enabled }},
		{name: "policy.source", initial: PolicyFile,
			read: func(c *Config, v strict.Value) { choice(v, &c.Policy.Source, PolicyFile, PolicyKubernetes, PolicyEtcd) },
			get:  func(c *Config) any { return c.Policy.Source }},
		{name: "policy.file", initial: DefaultPolicies,
			read: func(c *Config, v strict.Value) { text(v, &c.Policy.File, absolute, notEmpty) },
			get:  func(c *Config) any { return c.Policy.File }},
		{name: "policy.verdict_socket", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Policy.VerdictSocket, absolute, socketLength) },
			get:  func(c *Config) any { return c.Policy.VerdictSocket }},
		{name: "policy.authz_socket", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.Policy.AuthzSocket, absolute, socketLength) },
			get:  func(c *Config) any { return c.Policy.AuthzSocket }},
	}, bgpKeys(), []key{
		{name: "api.socket", initial: DefaultSocket,
			read: func(c *Config, v strict.Value) { text(v, &c.API.Socket, absolute, notEmpty, socketLength) },
			get:  func(c *Config) any { return c.API.Socket }},
		{name: "api.metrics", initial: "127.0.0.1:9470",
			read: func(c *Config, v strict.Value) { text(v, &c.API.Metrics, hostPort) },
			get:  func(c *Config) any { return c.API.Metrics }},
		{name: "state_dir", initial: DefaultStateDir,
			read: func(c *Config, v strict.Value) { text(v, &c.StateDir, absolute, notEmpty) },
			get:  func(c *Config) any { return c.StateDir }},
	})
}

// Key is a key as people know it.
type Key struct {
	Name    string // dotted path
	Default string // in YAML; "" where it is computed or has to be given
}

// Keys are all keys in the order of the file.
func Keys() []Key {
	var list []Key
	for _, k := range keys() {
		list = append(list, Key{k.name, k.initial})
	}
	return list
}

// A rule says what is wrong with a text, "" when nothing is.
type rule func(string) string

func text(v strict.Value, to *string, rules ...rule) {
	s, ok := v.String()
	if !ok {
		return
	}
	for _, r := range rules {
		if wrong := r(s); wrong != "" {
			v.Fail("%s", wrong)
			return
		}
	}
	*to = s
}

func number[T int | uint16 | uint32](v strict.Value, to *T, least, most int64) {
	if n, ok := v.Int(least, most); ok {
		*to = T(n)
	}
}

func choice(v strict.Value, to *string, options ...string) {
	text(v, to, func(s string) string {
		if slices.Contains(options, s) {
			return ""
		}
		return strconv.Quote(s) + " is unknown" + meant(s, options)
	})
}

// meant ends a sentence about an unknown word.
func meant(word string, options []string) string {
	if near := strict.Nearest(word, options); near != "" {
		return ": did you mean " + near + "?"
	}
	return ": write one of " + strings.Join(options, ", ")
}

func nodeName(s string) string {
	if s == "" { // detect
		return ""
	}
	return control.WrongName(s)
}

// interfaceName follows dev_valid_name of the kernel.
func interfaceName(s string) string {
	if len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: \t\n\v\f\r\x00") {
		return strconv.Quote(s) + " is not an interface name: at most 15 bytes without '/', ':' and spaces"
	}
	return ""
}

func absolute(s string) string {
	if s != "" && (!filepath.IsAbs(s) || strings.ContainsRune(s, 0)) {
		return strconv.Quote(s) + " is not an absolute path: start it with /"
	}
	return ""
}

func notEmpty(s string) string {
	if s == "" {
		return "is empty: write a path or remove the key"
	}
	return ""
}

func socketLength(s string) string {
	if len(filepath.Base(s)) > maxSocketName {
		return "the name behind the last / is longer than " + strconv.Itoa(maxSocketName) + " bytes, all that there is room for in a unix socket's address: choose a shorter one"
	}
	return ""
}

func hostPort(s string) string {
	if s == "" { // off
		return ""
	}
	_, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 {
		return strconv.Quote(s) + " is not host:port: write 127.0.0.1:9470, [::1]:9470, or \"\" for none"
	}
	return ""
}
