package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"weft/internal/ipnet"
)

// self is the name of the binary, and so the `type` that a configuration names.
const self = "weft-cni"

const defaultSocket = "/run/weft/weft.sock"

// conf is the configuration of one call.
type conf struct {
	types.PluginConf
	Socket string `json:"socket"` // the daemon's api.socket; "" = defaultSocket
	MTU    int    `json:"mtu"`    // of the pod's interface, bytes; 0 = the largest that fits

	Runtime runtimeConfig `json:"runtimeConfig"`
	Args    struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	Legacy []types.GCAttachment `json:"cni.dev/attachments"` // as libcni sends them besides

	told bool // which attachments are valid: also that none is
}

// runtimeConfig is what the runtime asks for by the capabilities that the configuration declares.
type runtimeConfig struct {
	IPs []string `json:"ips"`
	MAC string   `json:"mac"`
	DNS struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`

	// Of other plugins: refused, since a pod without them would look as if it had them.
	PortMappings json.RawMessage `json:"portMappings"`
	Bandwidth    json.RawMessage `json:"bandwidth"`
	IPRanges     json.RawMessage `json:"ipRanges"` // for the plugin named in ipam
}

// keys are those of the specification, and our own: socket and mtu. Keys with a slash are reserved
// by the specification for runtimes.
var keys = []string{"cniVersion", "name", "type", "capabilities", "ipam", "dns", "prevResult", "runtimeConfig", "args", "socket", "mtu"}

// podArgs are CNI_ARGS as kubelet and others set them.
type podArgs struct {
	types.CommonArgs
	IP, MAC                                                            types.UnmarshallableString
	K8S_POD_NAMESPACE, K8S_POD_NAME                                    types.UnmarshallableString //nolint:revive // the library finds them by these names
	K8S_POD_INFRA_CONTAINER_ID, K8S_POD_UID, K8S_POD_RUNTIME_CONTAINER types.UnmarshallableString //nolint:revive
}

// decode reads a configuration strictly. All errors are *types.Error.
func decode(data []byte) (*conf, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("the configuration is no JSON object: %v", err), "")
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !slices.Contains(keys, key) && !strings.Contains(key, "/") {
			return nil, unsupported(key, all[key], "weft-cni has "+strings.Join(keys[len(keys)-2:], " and ")+"; all else is in the daemon's weft.yaml")
		}
	}
	c := &conf{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("the configuration cannot be read: %v", err), "")
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if c.Socket == "" {
		c.Socket = defaultSocket
	}
	for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		_, there := all[key]
		c.told = c.told || there
	}
	return c, c.wrong(all["ipam"])
}

func (c *conf) wrong(ipam json.RawMessage) error {
	r := c.Runtime
	switch {
	case c.MTU < 0 || c.MTU > 65535:
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mtu %d: write 0 for the largest that fits, or up to 65535", c.MTU), "")
	case c.IPAM.Type == self:
		return types.NewError(types.ErrInvalidNetworkConfig, "ipam.type "+self+": leave ipam out, the daemon gives out addresses by itself", "")
	case c.IPAM.Type == "" && !blank(ipam):
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("ipam %s has no type: name a plugin, or leave ipam out and the daemon gives out addresses", ipam), "")
	case !blank(r.PortMappings):
		return unsupported("runtimeConfig.portMappings", r.PortMappings, "chain the plugin portmap and declare the capability there")
	case !blank(r.Bandwidth):
		return unsupported("runtimeConfig.bandwidth", r.Bandwidth, "chain the plugin bandwidth and declare the capability there")
	case !blank(r.IPRanges) && c.IPAM.Type == "":
		return unsupported("runtimeConfig.ipRanges", r.IPRanges, "the daemon gives out addresses of the node's prefix; for others name a plugin in ipam")
	}
	return nil
}

// blank says whether a value is as good as absent.
func blank(v json.RawMessage) bool {
	switch string(v) {
	case "", "null", "{}", "[]":
		return true
	}
	return false
}

func unsupported(key string, value json.RawMessage, remedy string) error {
	return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("unsupported field %s: %s", key, value), remedy)
}

// podRequest is what is asked for of one pod's interface.
type podRequest struct {
	podNamespace, podName string
	ips                   []netip.Prefix
	mac                   string
}

// podRequest gathers what runtimeConfig, args and CNI_ARGS ask for; the first of them that names
// addresses, or a MAC address, wins.
func (c *conf) podRequest(a *skel.CmdArgs) (w podRequest, err error) {
	var p podArgs
	if err := types.LoadArgs(a.Args, &p); err != nil {
		return w, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+strings.TrimPrefix(err.Error(), "ARGS: "),
			"IgnoreUnknown=1 lets others pass")
	}
	w.podNamespace, w.podName = string(p.K8S_POD_NAMESPACE), string(p.K8S_POD_NAME)
	ips, from := c.Runtime.IPs, "runtimeConfig.ips"
	if len(ips) == 0 {
		ips, from = c.Args.CNI.IPs, "args.cni.ips"
	}
	code := types.ErrInvalidNetworkConfig
	if len(ips) == 0 && p.IP != "" {
		ips, from, code = strings.Split(string(p.IP), ","), "CNI_ARGS IP", types.ErrInvalidEnvironmentVariables
	}
	for _, text := range ips {
		ip, err := parseIP(text)
		if err != nil {
			return w, types.NewError(code, fmt.Sprintf("%s: %q is not an address", from, text), "")
		}
		w.ips = append(w.ips, ip)
	}
	w.mac, from, code = c.Runtime.MAC, "runtimeConfig.mac", types.ErrInvalidNetworkConfig
	if w.mac == "" {
		w.mac, from, code = string(p.MAC), "CNI_ARGS MAC", types.ErrInvalidEnvironmentVariables
	}
	if w.mac != "" {
		if hw, err := net.ParseMAC(w.mac); err != nil || len(hw) != 6 {
			return w, types.NewError(code, fmt.Sprintf("%s: %q is not a MAC address", from, w.mac), "")
		}
	}
	return w, nil
}

// parseIP reads an address with or without a prefix length.
func parseIP(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%s has a zone", s)
	}
	return ipnet.Host(a), nil
}

// dns merges what says something about name servers: the runtime over the configuration over ipam.
func (c *conf) dns(ipam types.DNS) types.DNS {
	d := ipam
	if !c.DNS.IsEmpty() {
		d = c.DNS
	}
	if r := c.Runtime.DNS; len(r.Servers)+len(r.Searches)+len(r.Options) > 0 {
		d = types.DNS{Nameservers: r.Servers, Domain: d.Domain, Search: r.Searches, Options: r.Options}
	}
	return d
}
