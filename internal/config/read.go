package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"weft/catalog/mode"
	"weft/control"
	"weft/internal/config/strict"
	"weft/packet"
)

// reader fills a Config from a document and remembers where each value stands.
type reader struct {
	config *Config
	values map[string]strict.Value // by key
}

// defaults reads every key's default through the key's own reader, so that no default exists twice.
func (r reader) defaults() {
	for _, k := range keys() {
		if k.initial != "" {
			k.read(r.config, strict.Parse(k.name, []byte("x: "+k.initial)).Root().Fields("x")["x"])
		}
		r.config.origins[k.name] = Origin{From: FromDefault}
	}
	r.config.Mode, _ = mode.Find(r.config.built.Modes, r.config.built.DefaultMode)
	r.config.Modes = []mode.Mode{r.config.Mode}
}

// read walks the section at path ("" = the whole file).
func (r reader) read(v strict.Value, path string) {
	if path == "network" && v.Present() && !v.IsMapping() {
		r.shortNetwork(v)
		return
	}
	fields := v.Fields(children(path)...)
	for _, name := range children(path) {
		field, full := fields[name], name
		if path != "" {
			full = path + "." + name
		}
		i := slices.IndexFunc(keys(), func(k key) bool { return k.name == full })
		switch {
		case !field.Present(): // not in the file, or an error already
		case i < 0:
			r.read(field, full)
		default:
			r.leaf(keys()[i], field)
		}
	}
}

func (r reader) leaf(k key, v strict.Value) {
	before := k.get(r.config)
	k.read(r.config, v)
	r.values[k.name] = v
	r.config.origins[k.name] = Origin{From: FromFile, Why: fmt.Sprintf("%s:%d", r.config.file, v.Line())}
	if k.feature != "" && !slices.Contains(r.config.built.Features, k.feature) && !same(before, k.get(r.config)) {
		v.Fail("this weft is built without %s: remove the key", k.feature)
	}
}

func same(a, b any) bool {
	// A nil list and an empty one say the same.
	if x := reflect.ValueOf(a); x.Kind() == reflect.Slice && x.Len() == 0 && reflect.ValueOf(b).Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a, b)
}

// shortNetwork reads `network: 10.244.0.0/16`.
func (r reader) shortNetwork(v strict.Value) {
	s, ok := v.String()
	if !ok {
		return
	}
	r.values["network.prefixes"] = v
	r.config.origins["network.prefixes"] = Origin{From: FromFile, Why: fmt.Sprintf("%s:%d", r.config.file, v.Line())}
	if p, wrong := parsePrefix(s); wrong != "" {
		v.Fail("%s", wrong)
	} else {
		r.config.Network.Prefixes = []netip.Prefix{p}
	}
}

// children are the key names directly below path.
func children(path string) []string {
	var names []string
	for _, k := range keys() {
		rest := k.name
		if path != "" {
			var below bool
			if rest, below = strings.CutPrefix(k.name, path+"."); !below {
				continue
			}
		}
		if name, _, _ := strings.Cut(rest, "."); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func readPrefixes(c *Config, v strict.Value) {
	c.Network.Prefixes = nil
	for _, e := range v.List() {
		s, ok := e.String()
		if !ok {
			continue
		}
		p, wrong := parsePrefix(s)
		for _, q := range c.Network.Prefixes {
			if wrong == "" && q.Overlaps(p) {
				wrong = fmt.Sprintf("%v overlaps %v: keep the larger of the two", p, q)
			}
		}
		if wrong != "" {
			e.Fail("%s", wrong)
			continue
		}
		c.Network.Prefixes = append(c.Network.Prefixes, p)
	}
}

// parsePrefix reads an inner prefix of the overlay and says what is wrong with it.
func parsePrefix(s string) (p netip.Prefix, wrong string) {
	p, err := netip.ParsePrefix(s)
	switch a := p.Addr(); {
	case err != nil:
		if addr, aerr := netip.ParseAddr(s); aerr == nil {
			bits := 16
			if addr.Is6() {
				bits = 48
			}
			return p, fmt.Sprintf("%q is an address: write a prefix, %v say", s, netip.PrefixFrom(addr.Unmap(), bits).Masked())
		}
		return p, fmt.Sprintf("%q is not a prefix: write it like 10.244.0.0/16 or fd00:10:244::/48", s)
	case a.Is4In6():
		return p, fmt.Sprintf("%v is an IPv4 prefix in IPv6 clothes: write it as IPv4", p)
	case p != p.Masked():
		return p, fmt.Sprintf("%v has bits set behind its length: write %v", p, p.Masked())
	case p.Bits() == 0:
		return p, fmt.Sprintf("%v is the whole internet: write the prefix of the overlay", p)
	case a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a.IsUnspecified():
		return p, fmt.Sprintf("%v is not a range that hosts may use: write a private one like 10.244.0.0/16 or fd00:10:244::/48", p)
	}
	return p, ""
}

// readMode reads a mode, or several in order of preference.
func readMode(c *Config, v strict.Value) {
	list := []strict.Value{v}
	if v.IsList() {
		if list = v.List(); len(list) == 0 {
			v.Fail("is empty: write a mode, or several in order of preference")
			return
		}
	}
	c.Modes = nil
	for _, e := range list {
		m, ok := oneMode(c, e)
		if !ok {
			return
		}
		for _, have := range c.Modes {
			switch {
			case have.Name == m.Name:
				e.Fail("mode %s is listed twice: remove one", m.Name)
			case have.Lanes() && m.Lanes():
				e.Fail("the packets of one mode only can pass through the daemon, and those of %s do already: remove one of the two", have.Name)
			case !have.Lanes() && !m.Lanes() && have.Wire == m.Wire:
				e.Fail("modes %s and %s are of one device of the kernel: remove one of the two", have.Name, m.Name)
			}
		}
		if m.Inside == mode.TAP && len(list) > 1 {
			e.Fail("mode %s learns where stations are from the frames of one way: it cannot be one of several; write it alone", m.Name)
		}
		c.Modes = append(c.Modes, m)
	}
	c.Mode = c.Modes[0]
}

func oneMode(c *Config, v strict.Value) (m mode.Mode, known bool) {
	s, ok := v.String()
	if !ok {
		return m, false
	}
	names := mode.Names(c.built.Modes)
	if m, known = mode.Find(c.built.Modes, s); known {
		return m, true
	}
	if base, cipher, sealed := strings.Cut(s, "+"); sealed {
		v.Fail("%q names a cipher: write `mode: %s` and `encryption: {cipher: %s}`", s, base, cipher)
	} else {
		v.Fail("%q is not a mode%s", s, meant(s, names))
	}
	return m, false
}

func readPermitPlain(c *Config, v strict.Value) {
	c.Encryption.PermitPlain = nil
	for _, e := range v.List() {
		var name string
		if text(e, &name, control.WrongName); name != "" {
			c.Encryption.PermitPlain = append(c.Encryption.PermitPlain, name)
		}
	}
}

func readControlKind(c *Config, v strict.Value) {
	s, ok := v.String()
	if !ok {
		return
	}
	if !slices.Contains(c.built.Controls, s) {
		v.Fail("this weft has no control source %q%s", s, meant(s, c.built.Controls))
		return
	}
	c.Control.Kind = s
}

// check holds values against each other, once the whole file is read.
func (r reader) check(doc *strict.Document) {
	c := r.config
	if !doc.Root().IsMapping() { // said already
		return
	}
	switch prefixes := r.values["network.prefixes"]; {
	case !prefixes.Present() && c.Control.Kind == kindKubernetes: // the cluster is asked
	case !prefixes.Present() && doc.Err() == nil:
		doc.Fail("network.prefixes is missing: write `network: 10.244.0.0/16`, the prefix of the overlay")
	case len(c.Network.Prefixes) == 0 && doc.Err() == nil:
		prefixes.Fail("is empty: write the prefix of the overlay, 10.244.0.0/16 say")
	}
	r.checkMTU()
	r.checkEtcd()
	r.checkBGP()
	r.checkMesh()
	if c.ported() == nil && c.Network.Port != 0 {
		r.values["network.port"].Fail("mode %s sends no UDP: remove the key", c.Mode.Name)
	}
	for _, m := range c.Modes {
		if cipher := r.values["encryption.cipher"]; cipher.Present() && c.Encryption.Cipher != CipherNone && !m.Seals() {
			cipher.Fail("mode %s cannot seal: the kernel carries its packets; write mode: %s, or cipher: none", m.Name, mode.Default)
		}
	}
	if on := r.values["policy.enabled"]; c.Policy.Enabled && c.CNI.Attach == "bridge" {
		on.Fail("network policy cannot be enforced among bridged pods: their frames pass no forward hook; write cni: {attach: routed}")
	}
	if file := r.values["policy.file"]; file.Present() && c.Policy.Source != PolicyFile {
		file.Fail("policies come from %s: remove the key, or write policy: {source: file}", c.Policy.Source)
	}
	plain := c.Network.Port
	if first := c.ported(); plain == 0 && first != nil {
		plain = first.Port
	}
	if port := r.values["encryption.port"]; port.Present() && c.Encryption.Cipher != CipherNone && c.Encryption.Port == plain {
		port.Fail("is the plain tunnel's port too: sealed traffic needs one of its own")
	}
}

// checkMTU holds what a packet needs at least against what the underlay carries. The underlay's
// family is not known here, so the smaller outer header is assumed; the backend checks the rest.
func (r reader) checkMTU() {
	c := r.config
	if c.Node.MTU == 0 {
		return
	}
	least, what := packet.MinIPv4MTU, "IPv4"
	for _, p := range c.Network.Prefixes {
		if p.Addr().Is6() {
			least, what = packet.MinIPv6MTU, "IPv6"
		}
	}
	for _, m := range c.Modes {
		if inner := m.Wire.InnerMTU(c.Node.MTU, false, c.Encryption.Cipher != CipherNone); inner < least {
			r.values["node.mtu"].Fail("%d leaves %d bytes inside, %s needs %d: write at least %d, or 0 to detect it",
				c.Node.MTU, inner, what, least, c.Node.MTU+least-inner)
			return
		}
	}
}
