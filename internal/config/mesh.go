package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weft/internal/config/strict"
)

const kindMesh = "mesh"

// leastForget bounds control.mesh.forget_after: a node that is restarted, or its machine, loses nothing.
const leastForget = 10 * time.Minute

func readJoin(c *Config, v strict.Value) {
	c.Control.Mesh.Join = nil
	for _, e := range v.List() {
		var s string
		if text(e, &s, WrongHost); s != "" {
			c.Control.Mesh.Join = append(c.Control.Mesh.Join, s)
		}
	}
}

// WrongHost says what is wrong with a HOST or HOST:PORT to join, "" when nothing is.
func WrongHost(s string) string {
	wrong := fmt.Sprintf("%q is not a host: write a name or an address, with :PORT where it is not control.mesh.port, 192.0.2.1 or [2001:db8::1]:4786 say", s)
	if strings.Contains(s, "/") { // a URL has what looks like a port
		return wrong
	}
	name := s
	if _, err := netip.ParseAddr(s); err == nil { // IPv6 has colons
		return ""
	}
	if host, port, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Sprintf("%q has a port that is none: write HOST or HOST:PORT", s)
		}
		if _, err := netip.ParseAddr(host); err == nil {
			return ""
		}
		name = host
	}
	if name == "" || len(name) > 253 || strings.ContainsAny(name, ":@[] \t\n\"'{},") {
		return wrong
	}
	return ""
}

// checkMesh holds the keys of control.mesh against the others.
func (r reader) checkMesh() {
	c := r.config
	if c.Control.Kind != kindMesh {
		return
	}
	if c.Encryption.PSKFile == "" {
		r.values["control.kind"].Fail("the mesh has no password: write encryption: {psk_file: /etc/weft/password}, and the same password into that file on all nodes")
	}
	for _, m := range c.Modes {
		if m.Port == c.Control.Mesh.Port || c.Network.Port == c.Control.Mesh.Port {
			r.values["control.kind"].Fail("control.mesh.port %d is the tunnel's too: write another one on all nodes", c.Control.Mesh.Port)
			break
		}
	}
	if c.Encryption.Cipher != CipherNone && c.Encryption.Port == c.Control.Mesh.Port {
		r.values["control.kind"].Fail("control.mesh.port %d is encryption.port too: write another one on all nodes", c.Control.Mesh.Port)
	}
}
