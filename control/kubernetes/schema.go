package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weft/control"
)

// Annotations of weft's own.
const (
	prefixWeft        = "weft.network/"
	annotationMAC     = prefixWeft + "vtep-mac"   // "02:…"; with it a node is one of weft's
	annotationVNI     = prefixWeft + "vni"        // "1"
	annotationAt      = prefixWeft + "endpoints"  // "192.0.2.1,2001:db8::1", where those are not the node's InternalIPs
	annotationKey     = prefixWeft + "public-key" // base64 X25519, where the cluster is sealed
	annotationFeature = prefixWeft + "features"   // "rco,…"
	annotationWays    = prefixWeft + "ways"       // "vxlan:4789,…"
)

// Flannel's annotations (flannel, pkg/subnet/kube).
const (
	prefixFlannel       = "flannel.alpha.coreos.com/"
	flannelType         = prefixFlannel + "backend-type"        // "vxlan"
	flannelData         = prefixFlannel + "backend-data"        // {"VNI":1,"VtepMAC":"…"}
	flannelV6Data       = prefixFlannel + "backend-v6-data"     // the same
	flannelIP           = prefixFlannel + "public-ip"           // "192.0.2.1"
	flannelIPv6         = prefixFlannel + "public-ipv6"         // "2001:db8::1"
	flannelOverwrite    = prefixFlannel + "public-ip-overwrite" // a person's word over public-ip
	flannelV6Overwrite  = prefixFlannel + "public-ipv6-overwrite"
	flannelKubeManaged  = prefixFlannel + "kube-subnet-manager" // "true"; with it a node is one of Flannel's
	flannelKubeManagedV = "true"
)

// condition is the reason of a node's condition NetworkUnavailable where it is this project's: clouds make nodes with the condition
// True, and nothing is scheduled there until whoever is the network says otherwise.
type condition string

const (
	up   condition = "WeftIsUp"   // False: the node forwards
	down condition = "WeftIsDown" // True
)

// schema is how nodes are described in annotations.
type schema interface {
	// decode fills in what the annotations say about a node, given its name and prefixes; the answer says
	// why they are of no use, "" when they are.
	decode(n *control.Node, annotations map[string]string, internal []netip.Addr) (wrong string)
	// endpoints are those of this node, which has these addresses, as its Node object wants them.
	endpoints(mine, internal []netip.Addr, annotations map[string]string) []netip.Addr
	// annotations are what this node has to say. Endpoints that go without saying are left out by tell.
	annotations(n control.Node) (map[string]string, error)
	// tell takes out what the Node object says by itself.
	tell(annotations map[string]string, n control.Node, internal []netip.Addr)
}

// record is what one Node object says.
type record struct {
	node        control.Node
	internal    []netip.Addr      // InternalIPs that can be read
	annotations map[string]string // ours and Flannel's
	created     int64             // when the Node object came into being, Unix seconds
	network     condition         // its condition NetworkUnavailable, where it is one that weft writes
	waits       string            // why it has no prefix yet, "" when it has
	wrong       string            // why it is not in the cluster, "" when it is
}

func (r *record) equal(o *record) bool {
	return r.node.Equal(o.node) && r.created == o.created && r.network == o.network && r.waits == o.waits && r.wrong == o.wrong && slices.Equal(r.internal, o.internal) && maps.Equal(r.annotations, o.annotations)
}

// read is what a Node object says to this schema.
func read(s schema, n *corev1.Node) *record {
	r := &record{node: control.Node{Name: n.Name}, annotations: map[string]string{}, created: n.CreationTimestamp.Unix()}
	for k, v := range n.Annotations {
		if strings.HasPrefix(k, prefixWeft) || strings.HasPrefix(k, prefixFlannel) {
			r.annotations[k] = v
		}
	}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil {
			r.internal = append(r.internal, ip.Unmap())
		}
	}
	for _, c := range n.Status.Conditions {
		is := condition(c.Reason)
		if c.Type == corev1.NodeNetworkUnavailable && (is == up && c.Status == corev1.ConditionFalse || is == down && c.Status == corev1.ConditionTrue) {
			r.network = is
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, s := range cidrs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			r.waits = fmt.Sprintf("its podCIDR %q is not a prefix: delete the Node and let it register again", s)
			continue
		}
		r.node.Prefixes = append(r.node.Prefixes, p)
	}
	if len(cidrs) == 0 {
		r.waits = "it waits for its podCIDR: run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr"
	}
	r.wrong = s.decode(&r.node, r.annotations, r.internal)
	if r.waits != "" {
		r.wrong = r.waits
	}
	if r.wrong != "" {
		r.wrong = "the node is left out: " + r.wrong
	}
	return r
}

// thin is what read looks at of a Node object, so that a list of thousands stays small.
func thin(n *corev1.Node) *corev1.Node {
	thin := &corev1.Node{}
	thin.Name, thin.ResourceVersion, thin.UID, thin.CreationTimestamp = n.Name, n.ResourceVersion, n.UID, n.CreationTimestamp
	thin.Spec.PodCIDR, thin.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
	for k, v := range n.Annotations {
		if strings.HasPrefix(k, prefixWeft) || strings.HasPrefix(k, prefixFlannel) {
			if thin.Annotations == nil {
				thin.Annotations = map[string]string{}
			}
			thin.Annotations[k] = v
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			thin.Status.Addresses = append(thin.Status.Addresses, a)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			thin.Status.Conditions = append(thin.Status.Conditions, c)
		}
	}
	return thin
}

// own is weft's schema.
type own struct{ vni uint32 }

func (s own) decode(n *control.Node, annotations map[string]string, internal []netip.Addr) string {
	mac, registered := annotations[annotationMAC]
	if !registered {
		return "no weft daemon has registered on it: start one there, or give the daemon there the Node's name (node.name)"
	}
	var err error
	if n.MAC, err = control.ParseMAC(mac); err != nil {
		return fmt.Sprintf("annotation %s: %v: restart its daemon", annotationMAC, err)
	}
	if vni := annotations[annotationVNI]; vni != strconv.FormatUint(uint64(s.vni), 10) {
		return fmt.Sprintf("its VNI is %q and this node's %d: make them the same (network.vni)", vni, s.vni)
	}
	if wrong := extras(n, annotations); wrong != "" {
		return wrong
	}
	n.Endpoints = internal
	if list, ok := annotations[annotationAt]; ok {
		n.Endpoints = nil
		for a := range strings.SplitSeq(list, ",") {
			ip, err := netip.ParseAddr(a)
			if err != nil {
				return fmt.Sprintf("annotation %s: %q is not an address: restart its daemon", annotationAt, a)
			}
			n.Endpoints = append(n.Endpoints, ip)
		}
	}
	return ""
}

// extras reads what has no place in Flannel's annotations either.
func extras(n *control.Node, annotations map[string]string) string {
	n.PublicKey = annotations[annotationKey]
	if wrong := control.WrongKey(n.PublicKey); wrong != "" {
		return fmt.Sprintf("annotation %s is %s: restart its daemon", annotationKey, wrong)
	}
	if list := annotations[annotationFeature]; list != "" {
		n.Features = strings.Split(list, ",")
	}
	if list := annotations[annotationWays]; list != "" {
		n.Ways = nil
		for text := range strings.SplitSeq(list, ",") {
			var way control.Way
			_ = way.UnmarshalText([]byte(text)) // takes anything
			n.Ways = append(n.Ways, way)
		}
	}
	return ""
}

// endpoints: what Kubernetes calls the node's addresses wins where this node holds all of them, and
// so does its order; else the daemon knows better, for it was told an interface.
func (own) endpoints(mine, internal []netip.Addr, _ map[string]string) []netip.Addr {
	if len(mine) == 0 || len(internal) > 0 && !slices.ContainsFunc(internal, func(a netip.Addr) bool { return !slices.Contains(mine, a) }) {
		return internal
	}
	return mine
}

func (s own) annotations(n control.Node) (map[string]string, error) {
	all := map[string]string{annotationMAC: n.VTEP().String(), annotationVNI: strconv.FormatUint(uint64(s.vni), 10), annotationAt: join(n.Endpoints)}
	addExtras(all, n)
	return all, nil
}

func (own) tell(annotations map[string]string, n control.Node, internal []netip.Addr) {
	if slices.Equal(n.Endpoints, internal) {
		delete(annotations, annotationAt)
	}
}

func addExtras(all map[string]string, n control.Node) {
	if n.PublicKey != "" {
		all[annotationKey] = n.PublicKey
	}
	if len(n.Features) > 0 {
		all[annotationFeature] = strings.Join(n.Features, ",")
	}
	if len(n.Ways) > 0 {
		all[annotationWays] = join(n.Ways)
	}
}

func join[T fmt.Stringer](list []T) string {
	var words []string
	for _, x := range list {
		words = append(words, x.String())
	}
	return strings.Join(words, ",")
}

// flannel is the schema that flanneld keeps with --kube-subnet-mgr, so that weft nodes and flanneld
// nodes are one cluster. What Flannel has no place for stands in weft's own annotations beside it.
type flannel struct {
	vni  uint32
	port uint16 // of the tunnel: Flannel's annotations do not tell
}

// flannelPort is the UDP port of VXLAN where Flannel's configuration names none: Linux's own default.
const flannelPort = 8472

type flannelVTEP struct {
	VNI     uint32
	VtepMAC string
}

func (s flannel) decode(n *control.Node, annotations map[string]string, _ []netip.Addr) string {
	if annotations[flannelKubeManaged] != flannelKubeManagedV {
		return "neither flanneld nor weft has registered on it: start one there"
	}
	if kind := annotations[flannelType]; kind != "vxlan" {
		return fmt.Sprintf("it speaks %q: weft nodes reach vxlan nodes only", kind)
	}
	for _, f := range []struct{ ip, data string }{{flannelIP, flannelData}, {flannelIPv6, flannelV6Data}} {
		text, ok := annotations[f.ip]
		if !ok || text == "" {
			continue
		}
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Sprintf("annotation %s: %q is not an address: restart its daemon", f.ip, text)
		}
		n.Endpoints = append(n.Endpoints, ip)
		if annotations[f.data] == "" || annotations[f.data] == "null" {
			continue
		}
		var v flannelVTEP
		if err := json.Unmarshal([]byte(annotations[f.data]), &v); err != nil {
			return fmt.Sprintf("annotation %s cannot be read: %v: restart its daemon", f.data, err)
		}
		if v.VNI != s.vni {
			return fmt.Sprintf("its VNI is %d and this node's %d: make them the same", v.VNI, s.vni)
		}
		mac, err := control.ParseMAC(v.VtepMAC)
		if err != nil {
			return fmt.Sprintf("annotation %s: VtepMAC: %v: restart its daemon", f.data, err)
		}
		if n.MAC == (control.MAC{}) {
			n.MAC = mac
		}
	}
	n.Ways = control.KernelVXLAN(s.port) // unless it says otherwise, which flanneld does not
	return extras(n, annotations)
}

// endpoints follows the person who wrote public-ip-overwrite, as flanneld does.
func (flannel) endpoints(mine, internal []netip.Addr, annotations map[string]string) []netip.Addr {
	list := own{}.endpoints(mine, internal, nil)
	for _, key := range []string{flannelV6Overwrite, flannelOverwrite} {
		if ip, err := netip.ParseAddr(annotations[key]); err == nil {
			list = slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return a.Is4() == ip.Is4() })
			list = slices.Insert(list, 0, ip)
		}
	}
	return list
}

func (s flannel) annotations(n control.Node) (map[string]string, error) {
	all := map[string]string{flannelType: "vxlan", flannelKubeManaged: flannelKubeManagedV}
	data, err := json.Marshal(flannelVTEP{s.vni, n.VTEP().String()})
	if err != nil {
		return nil, err
	}
	for _, a := range n.Endpoints {
		ip, at := flannelIP, flannelData
		if a.Is6() {
			ip, at = flannelIPv6, flannelV6Data
		}
		if all[ip] == "" {
			all[ip], all[at] = a.String(), string(data)
		}
	}
	if all[flannelIP] == "" {
		return nil, fmt.Errorf("this node has no IPv4 address for its public-ip among %v: Flannel's schema cannot do without", n.Endpoints)
	}
	addExtras(all, n)
	return all, nil
}

func (flannel) tell(map[string]string, control.Node, []netip.Addr) {}
