package kubernetes

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/control"
)

// Whatever a Node object says, reading it ends well: it is in the cluster or it is named, and what is
// in the cluster comes out of its own annotations again.
func FuzzNode(f *testing.F) {
	f.Add("b", "10.244.2.0/24", "192.0.2.2", "02:00:00:00:00:01", "1", "", "rco", `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`, "true")
	f.Add("b", "", "fe80::1%eth0", "", "x", "192.0.2.1,2001:db8::1", ",,", `null`, "false")
	f.Add("", "10.244.2.0/240", "::ffff:192.0.2.1", "01:00:00:00:00:01", "1", ",", "", `{"VNI":-1}`, "true")
	f.Fuzz(func(t *testing.T, name, cidr, ip, mac, vni, at, features, data, managed string) {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
			annotationMAC: mac, annotationVNI: vni, annotationFeature: features, annotationKey: data,
			flannelKubeManaged: managed, flannelType: "vxlan", flannelIP: ip, flannelData: data, flannelIPv6: at, flannelV6Data: data,
		}}}
		if at != "" {
			n.Annotations[annotationAt] = at
		}
		n.Spec.PodCIDR = cidr
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
		for _, s := range []schema{own{1}, flannel{1, flannelPort}} {
			r := read(s, n)
			if !read(s, thin(n)).equal(r) {
				t.Fatalf("thin takes away what read looks at: %+v", r)
			}
			if r.wrong != "" {
				continue
			}
			state, err := control.Check(name, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, []control.Node{r.node}, control.State{}, nil)
			if err != nil {
				continue
			}
			all, err := s.annotations(state.Self)
			if err != nil {
				continue // no IPv4 address
			}
			n := control.Node{Name: name, Prefixes: r.node.Prefixes}
			if wrong := s.decode(&n, all, nil); wrong != "" || n.MAC != state.Self.VTEP() || n.PublicKey != state.Self.PublicKey {
				t.Fatalf("%+v came back as %+v: %s", state.Self, n, wrong)
			}
		}
	})
}
