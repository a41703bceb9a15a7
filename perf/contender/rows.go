package contender

import (
	"context"

	"golang.org/x/sys/unix"
)

// Row is a line of the list of contenders.
type Row struct {
	Name     string
	About    string // what it stands for
	Sealable bool   // a mode with lanes: takes "+cipher", and a fault
	Super    bool   // hands the kernel super-packets
	Needs    func() error
	Up       func(ctx context.Context, env Env, mode, cipher string) (Overlay, error)
}

// Rows is the list. A new contender is one line: a mode of the daemon is upDaemon, anything else
// brings its own function.
func Rows() []Row {
	return []Row{
		{Bare, "the ceiling: no overlay", false, false, nothing, upBare},
		{"host-gw", "Flannel host-gw, Calico without encapsulation: plain routes", false, false, nothing, upDaemon},
		{"vxlan", "kernel VXLAN at its best", false, false, kernelLink("vxlan"), upDaemon},
		{"vxlan-nocsum", "kernel VXLAN as Flannel and Calico ship it", false, false, kernelLink("vxlan"), upDaemon},
		{"udp", "Flannel's udp: raw IP in UDP, one packet a system call", true, false, device("/dev/net/tun"), upDaemon},
		{"tun", "the plain userspace overlay", true, false, device("/dev/net/tun"), upDaemon},
		{"tap", "Weave sleeve's L2: frames, MACs learnt", true, false, device("/dev/net/tun"), upDaemon},
		{"tun-gso", "the userspace overlay for streams", true, true, device("/dev/net/tun"), upDaemon},
		{"xdp", "the userspace overlay for packets", true, false, socket(unix.AF_XDP, "AF_XDP (CONFIG_XDP_SOCKETS)"), upDaemon},
		{"xdp-lib", "what the library asavie/xdp gives", true, false, socket(unix.AF_XDP, "AF_XDP (CONFIG_XDP_SOCKETS)"), upDaemon},
		{"xdp-udp", "AF_XDP inside, UDP sockets outside", true, false, socket(unix.AF_XDP, "AF_XDP (CONFIG_XDP_SOCKETS)"), upDaemon},
		{"tun-xdp", "TUN inside, AF_XDP outside", true, false, both(device("/dev/net/tun"), socket(unix.AF_XDP, "AF_XDP (CONFIG_XDP_SOCKETS)")), upDaemon},
		{"wireguard-go", "what a user would pick for encryption", false, true, device("/dev/net/tun"), upWireguardGo},
		{"wireguard", "the kernel's WireGuard: Flannel's and Calico's encryption", false, true, kernelLink("wireguard"), upWireguard},
		{"ipip", "IP in IP by the kernel: Calico's default", false, true, both(kernelLink("ipip"), kernelLink("sit")), upIPIP},
		{"geneve", "Geneve by the kernel: OVN, Antrea, Cilium", false, true, kernelLink("geneve"), upGeneve},
		{"ipsec", "IPsec by the kernel: ESP tunnels with AES-128-GCM, as IKE daemons set them up", false, true, kernelESP, upIPsec},
	}
}

func (r Row) contender(name, cipher string) Contender {
	return Contender{
		Name: name, About: r.About, Cipher: cipher, Super: r.Super, Needs: r.Needs,
		Up: func(ctx context.Context, env Env) (Overlay, error) {
			if !r.Sealable {
				env.Fault = ""
			}
			return r.Up(ctx, env, r.Name, cipher)
		},
	}
}
