package catalog

import (
	"fmt"
	"net/url"

	"go.uber.org/zap"

	"weft/catalog/mode"
	"weft/control"
	"weft/control/etcd"
	"weft/control/kubernetes"
	"weft/control/mesh"
	"weft/control/static"
	"weft/encap/sealed"
	"weft/internal/config"
	"weft/node/policies"
	"weft/policy"
)

// Source is one way to know who is in the cluster.
type Source struct {
	Kind  string
	About string
	New   func(*config.Config, *zap.Logger) control.Source
}

// Sources lists every control source.
var Sources = []Source{
	{"static", "a file that lists the nodes, reloaded on change", func(c *config.Config, log *zap.Logger) control.Source {
		return static.New(c.Control.Static.File, c.Network.Prefixes, log)
	}},
	{"etcd", "an etcd cluster, where every node leases its prefixes; Flannel's schema too", newEtcd},
	{"kubernetes", "a Kubernetes API server: podCIDRs and annotations of its nodes; Flannel's too", func(c *config.Config, log *zap.Logger) control.Source {
		return kubernetes.New(kubernetesSettings(c, log))
	}},
	{"mesh", "the nodes themselves, which find each other by one password and one address", newMesh},
}

// Policies makes the source of network policies that the configuration names.
func Policies(c *config.Config, log *zap.Logger) policy.Source {
	switch c.Policy.Source {
	case config.PolicyKubernetes:
		return kubernetes.NewPolicies(kubernetesSettings(c, log))
	case config.PolicyEtcd:
		return etcd.NewPolicies(etcdSettings(c, log))
	}
	return policies.File(c.Policy.File)
}

// Servers are the addresses, HOST:PORT, of the control plane that a daemon itself asks.
func Servers(c *config.Config) (list []string) {
	if c.Control.Kind == config.PolicyKubernetes || c.Policy.Enabled && c.Policy.Source == config.PolicyKubernetes {
		list = kubernetes.Servers(kubernetesSettings(c, nil))
	}
	for _, e := range c.Control.Etcd.Endpoints {
		if u, err := url.Parse(e); err == nil {
			list = append(list, u.Host)
		}
	}
	return list
}

// SourceByKind finds a source.
func SourceByKind(kind string) (Source, bool) {
	for _, s := range Sources {
		if s.Kind == kind {
			return s, true
		}
	}
	return Source{}, false
}

// Built says what this build can do, for the configuration to hold files against.
func Built() config.Built {
	b := config.Built{Modes: mode.All(), DefaultMode: mode.Default,
		Features: []string{config.FeatureEncryption, config.FeatureQueues, config.FeatureCNI}}
	for _, s := range Sources {
		b.Controls = append(b.Controls, s.Kind)
	}
	return b
}

func kubernetesSettings(c *config.Config, log *zap.Logger) kubernetes.Settings {
	k := c.Control.Kubernetes
	return kubernetes.Settings{Kubeconfig: k.Kubeconfig, Server: k.Server, Schema: k.Schema, Network: c.Network.Prefixes, VNI: c.Network.VNI, Port: c.Network.Port, Log: log}
}

func newEtcd(c *config.Config, log *zap.Logger) control.Source {
	return etcd.New(etcdSettings(c, log))
}

func newMesh(c *config.Config, log *zap.Logger) control.Source {
	m := c.Control.Mesh
	return mesh.New(mesh.Settings{Join: m.Join, Expect: m.Expect, Port: m.Port, Forget: m.Forget, Network: c.Network.Prefixes, VNI: c.Network.VNI, StateDir: c.StateDir, Log: log,
		Secrets: func() ([]mesh.Secret, error) { return meshSecrets(c.Encryption.PSKFile, m.AcceptFile) }})
}

// meshSecrets reads the password of the mesh, and the one that is taken from others besides, where there is one.
func meshSecrets(file, accept string) (list []mesh.Secret, err error) {
	for _, f := range []struct{ key, file string }{{"encryption.psk_file", file}, {"control.mesh.accept_psk_file", accept}} {
		if f.file == "" {
			continue
		}
		p, err := sealed.LoadPassword(f.file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.key, err)
		}
		list = append(list, p.Mesh())
	}
	return list, nil
}

// CheckMesh says what keeps a daemon of a mesh from reading its passwords.
func CheckMesh(c *config.Config) error {
	_, err := meshSecrets(c.Encryption.PSKFile, c.Control.Mesh.AcceptFile)
	return err
}

func etcdSettings(c *config.Config, log *zap.Logger) etcd.Settings {
	e := c.Control.Etcd
	return etcd.Settings{
		Endpoints: e.Endpoints, Prefix: e.Prefix, Schema: e.Schema, Lease: e.Lease,
		CAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile, Username: e.Username, PasswordFile: e.PasswordFile,
		Network: c.Network.Prefixes, VNI: c.Network.VNI, Port: c.Network.Port, StateDir: c.StateDir, Log: log,
	}
}
