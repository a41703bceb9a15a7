package config

import (
	"fmt"
	"net/netip"
	"slices"

	"weft/catalog/mode"
	"weft/control"
)

// Shown is one effective value and where it came from.
type Shown struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
	From  string `json:"from"`
	Why   string `json:"why,omitempty"`
}

// Show lists all effective values in the order of the file.
func (c *Config) Show() []Shown {
	var list []Shown
	for _, k := range keys() {
		o := c.origins[k.name]
		if k.feature != "" && !slices.Contains(c.built.Features, k.feature) {
			o = Origin{From: FromNowhere, Why: "this weft is built without " + k.feature}
		}
		value := k.get(c)
		if s, ok := value.([]string); ok && s == nil {
			value = []string{}
		}
		list = append(list, Shown{Key: k.name, Value: value, From: o.From, Why: o.Why})
	}
	return list
}

// Host is what detection asks of the machine.
type Host struct {
	Name     func() (string, error)
	NodeName string // what Kubernetes calls the node that a pod runs on, "" = unknown
	CPUs     int
}

// Detect fills in what the file leaves to the machine and to the mode: the node's name, the port,
// the number of queue pairs.
func (c *Config) Detect(h Host) error {
	if c.Node.Name == "" && c.Control.Kind == kindKubernetes && control.WrongName(h.NodeName) == "" {
		c.Node.Name = h.NodeName
		c.Detected("node.name", "NODE_NAME")
	}
	if c.Node.Name == "" {
		name, err := h.Name()
		if err != nil {
			return fmt.Errorf("config: host name: %w: set node.name in %s", err, c.file)
		}
		if wrong := control.WrongName(name); wrong != "" {
			return fmt.Errorf("config: host name: %s: set node.name in %s", wrong, c.file)
		}
		c.Node.Name = name
		c.Detected("node.name", "the host name")
	}
	first := c.ported()
	switch {
	case c.Network.Port != 0 || first == nil:
	case c.flannel():
		c.Network.Port = flannelPort
		c.Detected("network.port", "schema "+SchemaFlannel)
	default:
		c.Network.Port = first.Port
		c.Detected("network.port", "mode "+first.Name)
	}
	c.givePorts()
	if c.Queues == 0 {
		c.Queues = 1
		if slices.Contains(c.built.Features, FeatureQueues) {
			// A pair is two lanes, and the kernel's own receive work and the pods want cores too.
			c.Queues = max(1, h.CPUs/2)
			c.Detected("queues", fmt.Sprintf("half of %d cores", h.CPUs))
		}
	}
	return nil
}

// ported is the first mode with a UDP port, which network.port is about; nil = none has one.
func (c *Config) ported() *mode.Mode {
	i := slices.IndexFunc(c.Modes, func(m mode.Mode) bool { return m.Port != 0 })
	if i < 0 {
		return nil
	}
	return &c.Modes[i]
}

// givePorts gives each mode a port of its own: the first network.port, others the one they have by default, or the next below that is
// not taken. All nodes with one list come to the same.
func (c *Config) givePorts() {
	taken := map[uint16]bool{0: true, c.Encryption.Port: c.Encryption.Cipher != CipherNone}
	if first := c.ported(); first != nil {
		first.Port = c.Network.Port
		taken[first.Port] = true
		for i := range c.Modes {
			m := &c.Modes[i]
			if m == first || m.Port == 0 {
				continue
			}
			for taken[m.Port] {
				m.Port--
			}
			taken[m.Port] = true
		}
	}
	c.Mode = c.Modes[0]
}

// DetectedUnderlay records what was found out about the underlay; values the file holds stay.
func (c *Config) DetectedUnderlay(device string, mtu int, why string) {
	if c.Node.Interface == "" && device != "" {
		c.Node.Interface = device
		c.Detected("node.interface", why)
	}
	if c.Node.MTU == 0 && mtu != 0 {
		c.Node.MTU = mtu
		c.Detected("node.mtu", "MTU of "+device)
	}
}

// DetectedNetwork records which prefixes the cluster has, where the file leaves that to it.
func (c *Config) DetectedNetwork(prefixes []netip.Prefix, why string) {
	c.Network.Prefixes = prefixes
	c.Detected("network.prefixes", why)
}

// Detected records that the machine, not the file, gave a key its value.
func (c *Config) Detected(key, why string) {
	c.origins[key] = Origin{From: FromDetected, Why: why}
}
