package config

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"weft/catalog/mode"
	"weft/internal/config/strict"
)

// Schemas of control.etcd.schema and control.kubernetes.schema.
const (
	SchemaWeft    = "weft"
	SchemaFlannel = "flannel"
	// flannelPort is the UDP port of Flannel's VXLAN: Linux's own default.
	flannelPort = 8472
)

const kindKubernetes = "kubernetes"

// A lease shorter than leastLease ends with every hiccup of the network; etcd itself gives no less
// than 2 s.
const (
	leastLease = 3 * time.Second
	mostLease  = 365 * 24 * time.Hour
)

// flannel says that the cluster is one that flanneld nodes share.
func (c *Config) flannel() bool {
	return c.Control.Kind == "etcd" && c.Control.Etcd.Schema == SchemaFlannel ||
		c.Control.Kind == kindKubernetes && c.Control.Kubernetes.Schema == SchemaFlannel
}

func readEndpoints(c *Config, v strict.Value) {
	c.Control.Etcd.Endpoints = nil
	list := v.List()
	for _, e := range list {
		var s string
		if text(e, &s, endpointURL); s != "" {
			c.Control.Etcd.Endpoints = append(c.Control.Etcd.Endpoints, s)
		}
	}
	if list != nil && len(list) == 0 {
		v.Fail("is empty: write the URL of an etcd server, https://192.0.2.10:2379 say")
	}
}

func endpointURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Sprintf("%q is not a server's URL: write https://HOST:PORT or http://HOST:PORT", s)
	}
	return ""
}

func duration(v strict.Value, to *time.Duration, least, most time.Duration) {
	var s string
	text(v, &s, func(s string) string {
		if d, err := time.ParseDuration(s); err != nil || d < least || d > most {
			return fmt.Sprintf("%q is not a length of time from %s to %s: write 90s, 30m or 24h", s, short(least), short(most))
		}
		return ""
	})
	if s != "" {
		*to, _ = time.ParseDuration(s)
	}
}

// short prints a length of time without what is zero: 1h, not 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// checkEtcd holds the keys of control.etcd against each other and against the mode.
func (r reader) checkEtcd() {
	e := r.config.Control.Etcd
	if (e.CertFile == "") != (e.KeyFile == "") {
		present := r.values["control.etcd.cert_file"]
		if e.CertFile == "" {
			present = r.values["control.etcd.key_file"]
		}
		present.Fail("a certificate and its key go together: write cert_file and key_file, or neither")
	}
	if e.Username == "" && e.PasswordFile != "" {
		r.values["control.etcd.password_file"].Fail("is nobody's password: write control.etcd.username as well")
	}
	for i, a := range e.Endpoints {
		if strings.HasPrefix(a, "https://") != strings.HasPrefix(e.Endpoints[0], "https://") {
			r.values["control.etcd.endpoints"].Fail("%s and %s: write http or https for all of them", e.Endpoints[0], e.Endpoints[i])
			break
		}
	}
	r.checkFlannel()
}

// checkFlannel holds a network that flanneld nodes share against the mode.
func (r reader) checkFlannel() {
	if !r.config.flannel() {
		return
	}
	schema := r.values["control."+r.config.Control.Kind+".schema"]
	for _, m := range r.config.Modes {
		if m.Wire != mode.VXLAN {
			schema.Fail("Flannel's nodes speak VXLAN here, mode %s does not: write `mode: %s` or another VXLAN mode", m.Name, mode.Default)
		}
	}
	v4 := 0
	for _, p := range r.config.Network.Prefixes {
		if p.Addr().Is4() {
			v4++
		}
	}
	if len(r.config.Network.Prefixes) > 0 && (v4 != 1 || len(r.config.Network.Prefixes) > 2) {
		schema.Fail("Flannel's networks have one IPv4 prefix and at most one IPv6 prefix: write network.prefixes so")
	}
}
