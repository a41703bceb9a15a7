package config

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"weft/catalog/mode"
	"weft/internal/config/strict"
)

// BGP is with whom prefixes are exchanged by BGP.
type BGP struct {
	AS           uint32     // this node's autonomous system; 0 = BGP is off
	RouterID     netip.Addr // IPv4; invalid = by the node's endpoints
	Mesh         bool       // with every other node
	PasswordFile string     // of the sessions with them; "" = none
	Peers        []BGPPeer
}

// BGPPeer is a router.
type BGPPeer struct {
	Address      netip.Addr
	AS           uint32
	PasswordFile string   // "" = none
	Families     []string // ipv4, ipv6; empty = the address's own
	Import       []Import // what it is believed
	MaxPrefixes  int      // that it may tell of, in each family
	BFD          bool     // it is watched by BFD (RFC 5881), and its routes go as soon as it is not heard
	Graceful     bool     // prefixes are kept while either side restarts (RFC 4724); never with BFD
	Nodes        []string // patterns of the names of nodes that it is a peer of; empty = all
}

// Import is a prefix, and how long those inside of it may be.
type Import struct {
	Prefix  netip.Prefix
	Longest int // bits; Prefix.Bits() = that very prefix alone
}

// defaultMaxPrefixes is what a router may tell of where nobody says otherwise: more than any rack has, less than the internet.
const defaultMaxPrefixes = 10000

// Takes says whether a prefix is listed.
func (i Import) Takes(p netip.Prefix) bool {
	return p.Bits() >= i.Prefix.Bits() && p.Bits() <= i.Longest && i.Prefix.Contains(p.Addr())
}

func (i Import) String() string {
	if i.Longest == i.Prefix.Bits() {
		return i.Prefix.String()
	}
	return fmt.Sprintf("%v le %d", i.Prefix, i.Longest)
}

// MarshalText implements encoding.TextMarshaler by String.
func (i Import) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// For says whether the router is a peer of a node.
func (p *BGPPeer) For(node string) bool {
	return len(p.Nodes) == 0 || slices.ContainsFunc(p.Nodes, func(pattern string) bool {
		match, _ := path.Match(pattern, node) // a pattern was tried when it was read
		return match
	})
}

// String prints a peer in a line, for `weft config show`.
func (p BGPPeer) String() string {
	text := fmt.Sprintf("%v as %d", p.Address, p.AS)
	if len(p.Import) > 0 {
		list := make([]string, len(p.Import))
		for i := range p.Import {
			list[i] = p.Import[i].String()
		}
		text += " import " + strings.Join(list, ", ")
	}
	return text
}

// PasswordFiles are the files that BGP needs, each once.
func (b *BGP) PasswordFiles() (files []string) {
	add := func(file string) {
		if file != "" && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	add(b.PasswordFile)
	for i := range b.Peers {
		add(b.Peers[i].PasswordFile)
	}
	return files
}

func bgpKeys() []key {
	return []key{
		{name: "bgp.as", initial: "0",
			read: func(c *Config, v strict.Value) { number(v, &c.BGP.AS, 0, 1<<32-2) },
			get:  func(c *Config) any { return c.BGP.AS }},
		{name: "bgp.router_id", initial: `""`,
			read: readRouterID,
			get: func(c *Config) any {
				if c.BGP.RouterID.IsValid() {
					return c.BGP.RouterID.String()
				}
				return ""
			}},
		{name: "bgp.mesh", initial: "true",
			read: func(c *Config, v strict.Value) {
				if b, ok := v.Bool(); ok {
					c.BGP.Mesh = b
				}
			},
			get: func(c *Config) any { return c.BGP.Mesh }},
		{name: "bgp.password_file", initial: `""`,
			read: func(c *Config, v strict.Value) { text(v, &c.BGP.PasswordFile, absolute) },
			get:  func(c *Config) any { return c.BGP.PasswordFile }},
		{name: "bgp.peers", initial: "[]",
			read: readBGPPeers,
			get:  func(c *Config) any { return c.BGP.Peers }},
	}
}

func readRouterID(c *Config, v strict.Value) {
	c.BGP.RouterID = netip.Addr{}
	var s string
	text(v, &s, func(s string) string {
		if a, err := netip.ParseAddr(s); s != "" && (err != nil || !a.Is4() || a.IsUnspecified()) {
			return strconv.Quote(s) + " is no router ID: write it like an IPv4 address, 192.0.2.1 say, one that no other router has"
		}
		return ""
	})
	if s != "" {
		c.BGP.RouterID = netip.MustParseAddr(s)
	}
}

func readBGPPeers(c *Config, v strict.Value) {
	c.BGP.Peers = nil
	for _, e := range v.List() {
		if p, ok := readBGPPeer(c, e); ok {
			c.BGP.Peers = append(c.BGP.Peers, p)
		}
	}
}

func readBGPPeer(c *Config, v strict.Value) (p BGPPeer, ok bool) {
	fields := v.Fields("address", "as", "password_file", "families", "import", "max_prefixes", "bfd", "graceful_restart", "nodes")
	if !v.IsMapping() { // said already
		return p, false
	}
	p.MaxPrefixes = defaultMaxPrefixes
	if f := fields["address"]; !f.Present() {
		v.Fail("has no address: write the router's, {address: 192.0.2.254, as: 64513} say")
	} else if s, is := f.String(); is {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast():
			f.Fail("%q is no address of a router: write one like 192.0.2.254 or 2001:db8::fe; link-local ones are not in this build", s)
		case slices.ContainsFunc(c.BGP.Peers, func(o BGPPeer) bool { return o.Address == a }):
			f.Fail("%v is listed twice: remove one", a)
		default:
			p.Address = a
		}
	}
	if f := fields["as"]; !f.Present() {
		v.Fail("has no as: write the router's autonomous system, 64513 say")
	} else {
		number(f, &p.AS, 1, 1<<32-2)
	}
	if f := fields["password_file"]; f.Present() {
		text(f, &p.PasswordFile, absolute)
	}
	if f := fields["max_prefixes"]; f.Present() {
		number(f, &p.MaxPrefixes, 1, 1<<20)
	}
	if f := fields["bfd"]; f.Present() {
		p.BFD, _ = f.Bool()
	}
	p.Graceful = !p.BFD
	if f := fields["graceful_restart"]; f.Present() {
		if p.Graceful, _ = f.Bool(); p.Graceful && p.BFD {
			f.Fail("BFD and graceful restart contradict each other: the one drops the router's routes as soon as a daemon is not heard, the other keeps them for it: remove bfd, or write graceful_restart: false")
			p.Graceful = false
		}
	}
	if f := fields["families"]; f.Present() {
		for _, e := range f.List() {
			var family string
			if choice(e, &family, "ipv4", "ipv6"); family == "ipv6" && p.Address.Is4() {
				e.Fail("IPv6 prefixes cannot have an IPv4 next hop: give the router's IPv6 address, as a peer of its own")
			} else if family != "" {
				p.Families = append(p.Families, family)
			}
		}
	}
	if f := fields["import"]; f.Present() {
		for _, e := range f.List() {
			if s, is := e.String(); is {
				i, wrong := parseImport(s)
				if wrong != "" {
					e.Fail("%s", wrong)
					continue
				}
				p.Import = append(p.Import, i)
			}
		}
	}
	if f := fields["nodes"]; f.Present() {
		for _, e := range f.List() {
			var pattern string
			text(e, &pattern, func(s string) string {
				if _, err := path.Match(s, "node"); err != nil || s == "" {
					return strconv.Quote(s) + " is no pattern of node names: write a name, or one with * and ? in it, rack1-* say"
				}
				return ""
			})
			if pattern != "" {
				p.Nodes = append(p.Nodes, pattern)
			}
		}
	}
	return p, true
}

// parseImport reads `PREFIX` or `PREFIX le BITS`.
func parseImport(s string) (i Import, wrong string) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return i, "is empty: write a prefix, 198.51.100.0/24 say"
	}
	p, err := netip.ParsePrefix(words[0])
	switch {
	case err != nil || p.Addr().Is4In6():
		return i, fmt.Sprintf("%q is not a prefix: write it like 198.51.100.0/24, or `10.0.0.0/8 le 24` with all inside of it of up to 24 bits", s)
	case p != p.Masked():
		return i, fmt.Sprintf("%v has bits set behind its length: write %v", p, p.Masked())
	case p.Bits() == 0:
		return i, "a default route is not taken from BGP in this build: where packets to the outside go is the machine's own affair; list the prefixes that the router leads to"
	}
	i = Import{p, p.Bits()}
	switch {
	case len(words) == 1:
		return i, ""
	case len(words) == 3 && words[1] == "le":
		n, err := strconv.Atoi(words[2])
		if err == nil && n >= p.Bits() && n <= p.Addr().BitLen() {
			i.Longest = n
			return i, ""
		}
	}
	return i, fmt.Sprintf("%q: write `%v le BITS` with %d to %d bits", s, p, p.Bits(), p.Addr().BitLen())
}

// checkBGP holds the keys of bgp against each other and against the modes.
func (r reader) checkBGP() {
	b := r.config.BGP
	if b.AS == 0 {
		for _, k := range bgpKeys() {
			unset := &Config{}
			k.read(unset, strict.Parse(k.name, []byte("x: "+k.initial)).Root().Fields("x")["x"])
			if v := r.values[k.name]; v.Present() && !same(k.get(r.config), k.get(unset)) {
				v.Fail("BGP is off: write bgp.as, this node's autonomous system, 64512 say")
			}
		}
		return
	}
	direct := slices.ContainsFunc(r.config.Modes, func(m mode.Mode) bool { return m.Wire == mode.Direct })
	if !direct {
		r.values["bgp.as"].Fail("routes learnt by BGP carry packets as they are, and no mode of this node does: write `mode: %s`, or it and others", plainMode(r.config.built.Modes))
	}
	if !b.Mesh && len(b.Peers) == 0 {
		r.values["bgp.mesh"].Fail("leaves nobody to exchange routes with: list bgp.peers, or remove the key")
	}
	if v := r.values["bgp.password_file"]; v.Present() && b.PasswordFile != "" && !b.Mesh {
		v.Fail("is of the sessions with other nodes, and bgp.mesh is false: write it beside the peers that have it")
	}
}

// plainMode is the name of the mode without a tunnel.
func plainMode(modes []mode.Mode) string {
	i := slices.IndexFunc(modes, func(m mode.Mode) bool { return m.Wire == mode.Direct })
	if i < 0 {
		return "one without a tunnel"
	}
	return modes[i].Name
}
