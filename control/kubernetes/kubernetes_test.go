package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weft/control"
	"weft/control/kubernetes"
	"weft/internal/nettest"
)

const patience = nettest.Patience

// daemon is a running source.
type daemon struct {
	t      testing.TB
	source *kubernetes.Source
	states chan control.State
	done   chan error
	stop   context.CancelFunc
	last   control.State
}

func run(t testing.TB, s kubernetes.Settings, self control.Node) *daemon {
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{t: t, source: kubernetes.New(s), states: make(chan control.State, 1000), done: make(chan error, 1), stop: cancel}
	d.source.Announce(self)
	go func() { d.done <- d.source.Run(ctx, func(s control.State) { d.states <- s }) }()
	t.Cleanup(cancel)
	return d
}

func (d *daemon) await(what string, ok func(control.State) bool) control.State {
	d.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case d.last = <-d.states:
			if ok(d.last) {
				return d.last
			}
		case err := <-d.done:
			d.t.Fatalf("%s: Run returned %v", what, err)
		case <-deadline:
			d.t.Fatalf("%s: the last State has self %+v, %d nodes, problems %+v", what, d.last.Self, len(d.last.Nodes), d.last.Problems)
		}
	}
}

func (d *daemon) tells(node, text string) control.State {
	d.t.Helper()
	return d.await(text, func(s control.State) bool {
		return slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return p.Node == node && strings.Contains(p.Text, text) })
	})
}

func node(name string, rest ...string) control.Node {
	n := control.Node{Name: name, MAC: control.VTEPMAC(name)}
	for _, r := range rest {
		if a, err := netip.ParseAddr(r); err == nil {
			n.Endpoints = append(n.Endpoints, a)
		} else {
			n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(r))
		}
	}
	return n
}

func content(nodes int) func(control.State) bool {
	return func(s control.State) bool {
		return len(s.Self.Prefixes) > 0 && len(s.Nodes) == nodes && len(s.Problems) == 0
	}
}

// annotations waits until a node's annotations are these.
func (f *fake) annotations(name string, want map[string]string) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		f.mu.Lock()
		var got map[string]string
		if n := f.nodes[name]; n != nil {
			got = maps.Clone(n.Annotations)
		}
		f.mu.Unlock()
		if maps.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("annotations of %s are %v, want %v", name, got, want)
		}
		time.Sleep(time.Millisecond)
	}
}

const key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

func TestRegistration(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	self := node("a", "192.0.2.1", "2001:db8::1")
	self.PublicKey, self.Features = key, []string{"rco", "x"}
	f.put("a", object(node("a", "192.0.2.1")))
	d := run(t, f.settings, self)
	s := d.tells("a", "waits for its podCIDR")
	if len(s.Self.Prefixes) > 0 || len(s.Nodes) > 0 {
		t.Errorf("a node without a podCIDR takes part: %+v", s)
	}
	want := map[string]string{"weft.network/vtep-mac": control.VTEPMAC("a").String(), "weft.network/vni": "1",
		"weft.network/public-key": key, "weft.network/features": "rco,x"}
	f.annotations("a", want)
	// The podCIDR comes, and nothing of ours is lost.
	o := object(node("a", "192.0.2.1", "10.244.1.0/24", "fd00:10:244:1::/64"))
	o.Annotations = maps.Clone(want)
	f.put("a", o)
	s = d.await("the podCIDR", content(0))
	if fmt.Sprint(s.Self.Endpoints, s.Self.Prefixes) != "[192.0.2.1] [10.244.1.0/24 fd00:10:244:1::/64]" || s.Self.PublicKey != key {
		t.Errorf("self is %+v", s.Self)
	}
	// Somebody edits what is ours: it is put right, by force.
	o = o.DeepCopy()
	o.Annotations["weft.network/vtep-mac"] = "02:00:00:00:00:99"
	f.mu.Lock()
	f.owner["a"]["weft.network/vtep-mac"] = "kubectl-edit"
	f.putLocked("a", o)
	f.mu.Unlock()
	f.annotations("a", want)
	// Kubernetes knows the node by an address that this node does not have: ours is written down.
	o = o.DeepCopy()
	o.Annotations, o.Status.Addresses[0].Address = maps.Clone(want), "198.51.100.1"
	f.put("a", o)
	want["weft.network/endpoints"] = "192.0.2.1,2001:db8::1"
	f.annotations("a", want)
	// And where it knows better again, the annotation goes.
	o = o.DeepCopy()
	o.Annotations, o.Status.Addresses[0].Address = maps.Clone(want), "2001:db8::1"
	f.put("a", o)
	delete(want, "weft.network/endpoints")
	f.annotations("a", want)
	// The node itself has something else to tell.
	self.Endpoints, self.PublicKey, self.Features = node("a", "203.0.113.1").Endpoints, "", nil
	d.source.Announce(self)
	delete(want, "weft.network/public-key")
	delete(want, "weft.network/features")
	want["weft.network/endpoints"] = "203.0.113.1"
	f.annotations("a", want)
	// A public key that somebody else has put there stays, where the node has none of its own; and goes where it has.
	const other = "BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	o = o.DeepCopy()
	o.Annotations = maps.Clone(want)
	o.Annotations["weft.network/public-key"], o.Annotations["weft.network/vtep-mac"] = other, "02:00:00:00:00:99"
	f.put("a", o)
	want["weft.network/public-key"] = other
	f.annotations("a", want)
	self.PublicKey = key
	d.source.Announce(self)
	want["weft.network/public-key"] = key
	f.annotations("a", want)
}

// A wish that there is no more need for is not written later: the Node says what it is to say again.
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	self := node("a", "192.0.2.1")
	f.put("a", object(node("a", "192.0.2.1", "10.244.1.0/24")))
	d := run(t, f.settings, self)
	f.annotations("a", map[string]string{"weft.network/vtep-mac": control.VTEPMAC("a").String(), "weft.network/vni": "1"})
	deny := func(status int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.deny = status
	}
	deny(http.StatusForbidden) // the watch that is under way goes on
	other := self
	other.Endpoints = node("a", "203.0.113.1").Endpoints
	d.source.Announce(other)
	d.tells("a", "cannot be written")
	d.source.Announce(self)
	d.await("nothing is left to be said", content(0))
	deny(0)
	self.Features = []string{"x"} // the next that is written
	d.source.Announce(self)
	f.annotations("a", map[string]string{"weft.network/vtep-mac": control.VTEPMAC("a").String(), "weft.network/vni": "1", "weft.network/features": "x"})
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.events {
		if at := e.Object.Annotations["weft.network/endpoints"]; at != "" {
			t.Errorf("%s was written after it had been taken back", at)
		}
	}
}

// unavailable is a Node as a cloud makes it: nothing is scheduled there before its network is up.
func unavailable(n control.Node) *corev1.Node {
	o := object(n)
	o.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"},
		{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"}}
	return o
}

// conditions are those of a Node, by type.
func conditions(n *corev1.Node) string {
	all := map[corev1.NodeConditionType]string{}
	for _, c := range n.Status.Conditions {
		all[c.Type] = fmt.Sprintf("%s %s", c.Status, c.Reason)
	}
	return fmt.Sprint(all)
}

const (
	conditionsBefore = "map[NetworkUnavailable:True NoRouteCreated Ready:True KubeletReady]"
	conditionsUp     = "map[NetworkUnavailable:False WeftIsUp Ready:True KubeletReady]"
	conditionsDown   = "map[NetworkUnavailable:True WeftIsDown Ready:True KubeletReady]"
)

// carrying is what the daemon tells of a State in force, with a reason one that is not.
func carrying(reason string) control.InForce {
	return control.InForce{State: control.State{Self: node("a", "10.244.1.0/24")}, Reason: reason, InnerMTU: 1450}
}

// A node's condition NetworkUnavailable goes when the node forwards, not before, stays away, and comes back when the node has not
// forwarded for a while.
func TestNetworkUnavailable(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	now := func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return conditions(f.nodes["a"])
	}
	becomes := func(want string) {
		t.Helper()
		nettest.Eventually(t, patience, func() error {
			if got := now(); got != want {
				return fmt.Errorf("conditions are %s, want %s", got, want)
			}
			return nil
		})
	}
	written := map[string]string{"weft.network/vtep-mac": control.VTEPMAC("a").String(), "weft.network/vni": "1"}
	f.put("a", unavailable(node("a", "192.0.2.1")))
	d := run(t, f.settings, node("a", "192.0.2.1"))
	d.tells("a", "waits for its podCIDR")
	f.annotations("a", written)
	o := unavailable(node("a", "192.0.2.1", "10.244.1.0/24"))
	o.Annotations = maps.Clone(written)
	f.put("a", o)
	d.await("the podCIDR", content(0))
	if got := now(); got != conditionsBefore {
		t.Errorf("before it forwards its conditions are %s", got)
	}
	d.source.Hear(control.InForce{State: d.last})
	becomes(conditionsUp)
	d.source.Hear(control.InForce{State: d.last})
	// The Node is made anew, or somebody takes the condition for his own.
	f.put("a", unavailable(node("a", "192.0.2.1", "10.244.1.0/24")))
	becomes(conditionsUp)
	f.annotations("a", written)
	// A path that breaks and is opened anew is no news, one that stays away is.
	d.source.SetDownAfter(time.Hour)
	d.source.Hear(carrying("the device is gone"))
	d.source.Hear(carrying(""))
	d.source.SetDownAfter(time.Millisecond)
	f.put("a", unavailable(node("a", "192.0.2.1", "10.244.1.0/24"))) // so that something is written whatever is heard
	becomes(conditionsUp)
	d.source.Hear(carrying("the device is gone"))
	becomes(conditionsDown)
	f.put("a", unavailable(node("a", "192.0.2.1", "10.244.1.0/24")))
	becomes(conditionsDown)
	d.source.Hear(carrying("the device is gone still"))
	d.source.Hear(carrying(""))
	becomes(conditionsUp)
}

func TestOtherNodes(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.put("a", object(node("a", "192.0.2.1", "10.244.1.0/24")))
	b := registered(node("b", "192.0.2.2", "10.244.2.0/24"), kubernetes.SchemaWeft)
	b.Annotations["weft.network/public-key"], b.Annotations["weft.network/features"] = key, "rco"
	b.Annotations["weft.network/endpoints"] = "198.51.100.2,2001:db8::2"
	f.put("b", b)
	f.put("new", object(node("new", "192.0.2.7", "10.244.7.0/24")))
	garbage := map[string]func(a map[string]string){
		"mac":      func(a map[string]string) { a["weft.network/vtep-mac"] = "01:00:5e:00:00:01" },
		"vni":      func(a map[string]string) { a["weft.network/vni"] = "2" },
		"key":      func(a map[string]string) { a["weft.network/public-key"] = "%%%" },
		"endpoint": func(a map[string]string) { a["weft.network/endpoints"] = "192.0.2.5,nonsense" },
	}
	i := 20
	for name, spoil := range garbage {
		i++
		o := registered(node(name, fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("10.244.%d.0/24", i)), kubernetes.SchemaWeft)
		spoil(o.Annotations)
		f.put(name, o)
	}
	d := run(t, f.settings, node("a", "192.0.2.1"))
	s := d.tells("new", "no weft daemon")
	if len(s.Nodes) != 1 || fmt.Sprint(s.Nodes[0].Endpoints) != "[198.51.100.2 2001:db8::2]" || s.Nodes[0].PublicKey != key || s.Nodes[0].MAC != control.VTEPMAC("b") ||
		!slices.Equal(s.Nodes[0].Features, []string{"rco"}) {
		t.Errorf("nodes %+v", s.Nodes)
	}
	for name := range garbage {
		if !slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return p.Node == name }) {
			t.Errorf("%s is not named in %+v", name, s.Problems)
		}
	}
	// A deleted node is gone at once, and a Node that lost its own object goes on.
	f.put("b", nil)
	d.await("b is gone", func(s control.State) bool { return len(s.Nodes) == 0 })
	f.put("b", b)
	d.await("b is back", func(s control.State) bool { return len(s.Nodes) == 1 })
	f.put("a", nil)
	s = d.tells("", `no Node "a" any more`)
	if len(s.Self.Prefixes) != 1 || len(s.Nodes) != 1 {
		t.Errorf("losing its own object stopped the node: %+v", s)
	}
	// Its prefix is given to another: now it has to stop.
	f.put("c", registered(node("c", "192.0.2.3", "10.244.1.0/24"), kubernetes.SchemaWeft))
	s = d.tells("a", `no Node "a"`)
	if len(s.Self.Prefixes) != 0 || len(s.Nodes) != 0 {
		t.Errorf("two nodes hold a prefix: %+v", s)
	}
}

func TestOutageAndRelist(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.put("a", object(node("a", "192.0.2.1", "10.244.1.0/24")))
	for i := range 3 {
		name := fmt.Sprintf("n%d", i)
		f.put(name, registered(node(name, fmt.Sprintf("192.0.2.%d", 10+i), fmt.Sprintf("10.244.%d.0/24", 10+i)), kubernetes.SchemaWeft))
	}
	d := run(t, f.settings, node("a", "192.0.2.1"))
	d.await("all", content(3))
	asOf := d.last.AsOf
	f.kill()
	if s := d.tells("", "does not answer"); len(s.Nodes) != 3 || s.AsOf.Before(asOf) || time.Since(s.AsOf) < 0 {
		t.Errorf("an outage changed the cluster: %+v", s)
	}
	// While nobody listens nodes leave and join; the server comes back without a history.
	f.put("n1", nil)
	f.put("n9", registered(node("n9", "192.0.2.99", "10.244.99.0/24"), kubernetes.SchemaWeft))
	f.forget()
	s := d.await("the change", content(3))
	for !slices.ContainsFunc(s.Nodes, func(n control.Node) bool { return n.Name == "n9" }) {
		s = d.await("the change", content(3))
	}
	if slices.ContainsFunc(s.Nodes, func(n control.Node) bool { return n.Name == "n1" }) {
		t.Errorf("a node that was deleted during the outage is still there: %+v", s.Nodes)
	}
	// Rights are taken away and come back.
	f.mu.Lock()
	f.deny = http.StatusForbidden
	f.mu.Unlock()
	f.kill()
	f.start()
	if s := d.tells("", "deploy/kubernetes/weft.yaml"); len(s.Nodes) != 3 {
		t.Errorf("a refusal changed the cluster: %+v", s)
	}
	f.mu.Lock()
	f.deny = 0
	f.mu.Unlock()
	d.await("content", content(3))
	// A store that was wiped says nothing about the nodes.
	f.kill()
	f.mu.Lock()
	clear(f.nodes)
	f.mu.Unlock()
	f.forget()
	if s := d.tells("", "knows no node at all"); len(s.Nodes) != 3 || len(s.Self.Prefixes) != 1 {
		t.Errorf("a wiped store changed the cluster: %+v", s)
	}
	d.stop()
	if err := <-d.done; err != nil {
		t.Error(err)
	}
}

// A server that refuses a node that starts ends it, with the remedy.
func TestRefusedFromTheStart(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.deny = http.StatusForbidden
	d := run(t, f.settings, node("a", "192.0.2.1"))
	select {
	case err := <-d.done:
		if err == nil || !strings.Contains(err.Error(), "grant get, list, watch of nodes") {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Error("it goes on")
	}
}

func TestFlannelSchema(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.settings.Schema = kubernetes.SchemaFlannel
	a := object(node("a", "192.0.2.1", "10.244.1.0/24"))
	a.Annotations["flannel.alpha.coreos.com/public-ip-overwrite"] = "203.0.113.1"
	f.put("a", a)
	b := registered(node("b", "192.0.2.2", "2001:db8::2", "10.244.2.0/24"), kubernetes.SchemaFlannel)
	f.put("b", b)
	other := registered(node("c", "192.0.2.3", "10.244.3.0/24"), kubernetes.SchemaFlannel)
	other.Annotations["flannel.alpha.coreos.com/backend-type"] = "host-gw"
	f.put("c", other)
	other = registered(node("d", "192.0.2.4", "10.244.4.0/24"), kubernetes.SchemaFlannel)
	other.Annotations["flannel.alpha.coreos.com/backend-data"] = `{"VNI":7,"VtepMAC":"02:00:00:00:00:01"}`
	f.put("d", other)
	other = registered(node("e", "192.0.2.5", "10.244.5.0/24"), kubernetes.SchemaFlannel)
	other.Annotations["flannel.alpha.coreos.com/kube-subnet-manager"] = "false"
	f.put("e", other)
	d := run(t, f.settings, node("a", "192.0.2.1", "2001:db8::1"))
	s := d.tells("c", "host-gw")
	d.tells("d", "VNI is 7")
	d.tells("e", "neither flanneld nor weft")
	if len(s.Nodes) != 1 || s.Nodes[0].MAC != control.VTEPMAC("b") || fmt.Sprint(s.Nodes[0].Endpoints, s.Nodes[0].Ways) != "[192.0.2.2 2001:db8::2] [vxlan:8472 frames:8472]" {
		t.Errorf("nodes %+v", s.Nodes)
	}
	f.annotations("a", map[string]string{
		"flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.1", "flannel.alpha.coreos.com/public-ip": "203.0.113.1",
		"flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/kube-subnet-manager": "true",
		"flannel.alpha.coreos.com/backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"%v"}`, control.VTEPMAC("a")),
	})
	// flanneld came back with another MAC.
	b = b.DeepCopy()
	b.Annotations["flannel.alpha.coreos.com/backend-data"] = `{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}`
	f.put("b", b)
	d.await("the new MAC", func(s control.State) bool { return len(s.Nodes) == 1 && s.Nodes[0].MAC.String() == "02:00:00:00:00:77" })
}

// What is wrong with this node is an Event about its Node; what is wrong with another is not.
func TestEvents(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	f.put("a", object(node("a", "192.0.2.1")))
	f.put("new", object(node("new", "192.0.2.7", "10.244.7.0/24")))
	d := run(t, f.settings, node("a", "192.0.2.1"))
	d.tells("new", "no weft daemon")
	nettest.Eventually(t, patience, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, e := range f.told {
			if e.InvolvedObject.Kind != "Node" || e.InvolvedObject.Name != "a" || e.Type != corev1.EventTypeWarning || e.Reason != "WeftProblem" {
				t.Fatalf("%+v", e)
			}
			if strings.Contains(e.Message, "waits for its podCIDR") {
				return nil
			}
		}
		return fmt.Errorf("events %+v", f.told)
	})
}

// The cluster's prefixes are those that kubeadm wrote down; where it did not, that is a person's to say, and a server
// that does not answer is asked again by the caller.
func TestFindNetwork(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	if _, _, err := kubernetes.FindNetwork(t.Context(), f.settings); !errors.Is(err, kubernetes.ErrNoNetwork) || !strings.Contains(err.Error(), "network.prefixes") {
		t.Errorf("without kubeadm: %v", err)
	}
	f.mu.Lock()
	f.kubeadm = "networking: {podSubnet: \"10.244.0.0/16,fd00:10:244::/48\"}"
	f.mu.Unlock()
	if network, why, err := kubernetes.FindNetwork(t.Context(), f.settings); err != nil || fmt.Sprint(network) != "[10.244.0.0/16 fd00:10:244::/48]" || !strings.Contains(why, "kubeadm-config") {
		t.Errorf("%v, %s, %v", network, why, err)
	}
	f.kill()
	if _, _, err := kubernetes.FindNetwork(t.Context(), f.settings); err == nil || errors.Is(err, kubernetes.ErrNoNetwork) {
		t.Errorf("without a server: %v", err)
	}
}
