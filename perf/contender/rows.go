package contender

import (
	"context"
	"slices"

	"weft/catalog/mode"
	"weft/internal/kernel"
)

// BGP is the name of the contender whose routes come by BGP.
const BGP = "bgp"

// Row is a line of the list of contenders.
type Row struct {
	Name     string
	About    string // what it stands for
	Sealable bool   // a mode with lanes: takes "+cipher", and a fault
	Super    bool   // hands the kernel super-packets
	Needs    func() error
	Up       func(ctx context.Context, env Env, mode, cipher string) (Overlay, error)
	MaxMTU   func(sealed bool) int // of the underlay, bytes; nil or 0 = all that the lab has
}

// Rows is the list: the ceiling, the daemon's modes, the plain one with BGP, and the others.
func Rows() []Row { return Of(mode.All()) }

// Of is Rows with these modes. A contender that is no mode of the daemon is one line here, and brings its own function.
func Of(modes []mode.Mode) []Row {
	list := []Row{{Bare, "the ceiling: no overlay", false, false, needs(), upBare, nil}}
	for _, m := range modes {
		up := func(ctx context.Context, env Env, _, cipher string) (Overlay, error) {
			return upDaemon(ctx, env, m, cipher, false)
		}
		list = append(list, Row{m.Name, m.For, m.Seals(), m.Super, needsOf(m), up, m.MaxMTU})
	}
	if i := slices.IndexFunc(modes, func(m mode.Mode) bool { return m.Wire == mode.Direct }); i >= 0 {
		up := func(ctx context.Context, env Env, _, _ string) (Overlay, error) {
			return upDaemon(ctx, env, modes[i], "none", true)
		}
		list = append(list, Row{BGP, "plain routes that the nodes tell each other by BGP: Calico without encapsulation", false, modes[i].Super, needsOf(modes[i]), up, modes[i].MaxMTU})
	}
	return append(list, []Row{
		{"wireguard-go", "what a user would pick for encryption", false, true, needs(kernel.TUN), upWireguardGo, nil},
		{"wireguard", "the kernel's WireGuard: Flannel's and Calico's encryption", false, true, needs(kernel.WireGuard), upWireguard, nil},
		{"ipip", "IP in IP by the kernel: Calico's default", false, true, needs(kernel.IPIP, kernel.SIT), upIPIP, nil},
		{"geneve", "Geneve by the kernel: OVN, Antrea, Cilium", false, true, needs(kernel.Geneve), upGeneve, nil},
		{"ipsec", "IPsec by the kernel: ESP tunnels with AES-128-GCM, as IKE daemons set them up", false, true, needs(kernel.ESP), upIPsec, nil},
	}...)
}

// needs says what of the kernel a contender lacks here.
func needs(all ...kernel.Ability) func() error { return func() error { return kernel.Need(all...) } }

func needsOf(m mode.Mode) func() error {
	var all []kernel.Ability
	for _, n := range m.Needs {
		all = append(all, kernel.Ability(n))
	}
	return needs(all...)
}

func (r Row) contender(name, cipher string) Contender {
	c := Contender{
		Name: name, About: r.About, Cipher: cipher, Super: r.Super, Lanes: r.Sealable, Needs: r.Needs,
		Up: func(ctx context.Context, env Env) (Overlay, error) {
			if !r.Sealable {
				env.Fault = ""
			}
			return r.Up(ctx, env, r.Name, cipher)
		},
	}
	if r.MaxMTU != nil {
		c.MaxMTU = r.MaxMTU(cipher != "none")
	}
	return c
}
