package kubernetes

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/control"
)

// TestElder: an address that Kubernetes knows for a Node's is that Node's, before one's that is older and only annotated.
func TestElder(t *testing.T) {
	at := netip.MustParseAddr("192.0.2.2")
	made := func(name string, created int64, internal string) *record {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(created, 0)}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: internal}}
		return read(own{1}, n)
	}
	m := &member{records: map[string]*record{"old": made("old", 1, "192.0.2.1"), "young": made("young", 2, "192.0.2.2"), "younger": made("younger", 3, "192.0.2.2")}}
	for _, c := range []struct {
		a, b     string
		endpoint netip.Addr
		first    int
	}{
		{"old", "young", at, 1}, {"young", "old", at, -1}, {"young", "younger", at, -1}, {"old", "young", netip.Addr{}, -1},
		{"old", "young", netip.MustParseAddr("203.0.113.1"), -1}, {"gone", "old", at, 1}, {"gone", "young", at, 1},
	} {
		claim := func(name string) control.Claim {
			return control.Claim{Node: &control.Node{Name: name}, Endpoint: c.endpoint}
		}
		if got := m.elder(claim(c.a), claim(c.b)); got != c.first {
			t.Errorf("%s and %s claim %v: %d, want %d", c.a, c.b, c.endpoint, got, c.first)
		}
	}
}
