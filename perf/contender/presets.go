package contender

// Preset names a whole system as people run it, by the contender that carries packets as it does. In results it keeps its name.
type Preset struct {
	Name      string `json:"name"`
	Contender string `json:"contender"`
	About     string `json:"about"`
}

// Presets lists them. They stand for the systems' data planes, not for their control planes or policies.
func Presets() []Preset {
	return []Preset{
		{"flannel-vxlan", "vxlan-nocsum", "Flannel's default backend"},
		{"flannel-host-gw", "host-gw", "Flannel where nodes share a link"},
		{"flannel-udp", "udp", "Flannel's backend for kernels without VXLAN"},
		{"flannel-wireguard", "wireguard", "Flannel's encrypted backend"},
		{"flannel-ipip", "ipip", "Flannel's IP-in-IP backend"},
		{"flannel-ipsec", "ipsec", "Flannel's IPsec backend"},
		{"calico-plain", "host-gw", "Calico without encapsulation, routes from the list of nodes"},
		{"calico-bgp", "bgp", "Calico without encapsulation, routes by BGP, a full mesh"},
		{"calico-ipip", "ipip", "Calico's IP-in-IP"},
		{"calico-vxlan", "vxlan-nocsum", "Calico's VXLAN"},
		{"calico-wireguard", "wireguard", "Calico with WireGuard"},
		{"canal", "vxlan-nocsum", "Flannel's VXLAN with Calico's policies, none set"},
		{"weave-fastdp", "vxlan", "Weave's fast datapath: VXLAN in the kernel"},
		{"weave-sleeve", "tap", "Weave's fallback: frames through a process"},
		{"weave-sleeve-encrypted", "tap+chacha20-poly1305", "Weave's fallback, sealed (its own cipher is XSalsa20-Poly1305)"},
	}
}
