package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"weft/policy"
)

// named is what of an object's metadata is looked at.
func named(o metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, Labels: o.Labels, ResourceVersion: o.ResourceVersion, UID: o.UID,
		CreationTimestamp: o.CreationTimestamp, DeletionTimestamp: o.DeletionTimestamp}
}

// thinPod is what readPod looks at, so that a list of a hundred thousand stays small.
func thinPod(o runtime.Object) runtime.Object {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o
	}
	t := &corev1.Pod{ObjectMeta: named(p.ObjectMeta)}
	t.Spec.NodeName, t.Spec.HostNetwork, t.Spec.ServiceAccountName = p.Spec.NodeName, p.Spec.HostNetwork, p.Spec.ServiceAccountName
	for _, c := range portsOf(p) {
		t.Spec.Containers = append(t.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{c}})
	}
	t.Status.Phase, t.Status.PodIP, t.Status.PodIPs = p.Status.Phase, p.Status.PodIP, p.Status.PodIPs
	return t
}

// portsOf are the named ports of the containers that run beside each other: those of init containers that go on, too.
func portsOf(p *corev1.Pod) (all []corev1.ContainerPort) {
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.Name != "" {
				all = append(all, port)
			}
		}
	}
	return all
}

// readPod is what a Pod is to policies. One of the node's network is nobody to them, and one that has ended has no address any more.
func readPod(obj any) (*podRecord, bool, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, false, fmt.Errorf("a %T is not a Pod", obj)
	}
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return nil, false, nil
	}
	r := &podRecord{Pod: policy.Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName, Labels: p.Labels, ServiceAccount: p.Spec.ServiceAccountName},
		created: p.CreationTimestamp.Unix(), going: p.DeletionTimestamp != nil}
	ips := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	for _, ip := range ips {
		// One that cannot be read is nobody's, and a pod that has it on its node is unknown there.
		if a, err := netip.ParseAddr(ip); err == nil && a.Zone() == "" && !slices.Contains(r.Addresses, a.Unmap()) {
			r.Addresses = append(r.Addresses, a.Unmap())
		}
	}
	for _, port := range portsOf(p) {
		n := policy.NamedPort{Name: port.Name, Port: uint16(port.ContainerPort), Protocol: policy.TCP}
		switch port.Protocol {
		case corev1.ProtocolUDP:
			n.Protocol = policy.UDP
		case corev1.ProtocolSCTP:
			n.Protocol = policy.SCTP
		}
		if !slices.Contains(r.Ports, n) {
			r.Ports = append(r.Ports, n)
		}
	}
	return r, true, nil
}

func (r *podRecord) same(o *podRecord) bool {
	return r.Node == o.Node && r.ServiceAccount == o.ServiceAccount && r.created == o.created && r.going == o.going && slices.Equal(r.Addresses, o.Addresses) && slices.Equal(r.Ports, o.Ports) && maps.Equal(r.Labels, o.Labels)
}

func thinNamespace(o runtime.Object) runtime.Object {
	n, ok := o.(*corev1.Namespace)
	if !ok {
		return o
	}
	return &corev1.Namespace{ObjectMeta: named(n.ObjectMeta)}
}

func readNamespace(obj any) (policy.Namespace, bool, error) {
	n, ok := obj.(*corev1.Namespace)
	if !ok {
		return policy.Namespace{}, false, fmt.Errorf("a %T is not a Namespace", obj)
	}
	return policy.Namespace{Name: n.Name, Labels: n.Labels}, true, nil
}

// thinNode is thin for a reflector.
func thinNode(o runtime.Object) runtime.Object {
	if n, ok := o.(*corev1.Node); ok {
		return thin(n)
	}
	return o
}

// thinLabelled is what rules about nodes look at.
func thinLabelled(o runtime.Object) runtime.Object {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o
	}
	t := &corev1.Node{ObjectMeta: named(n.ObjectMeta)}
	t.Status.Addresses = n.Status.Addresses
	return t
}

func readNode(obj any) (policy.Node, bool, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return policy.Node{}, false, fmt.Errorf("a %T is not a Node", obj)
	}
	r := policy.Node{Name: n.Name, Labels: n.Labels}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && ip.Zone() == "" && (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) && !slices.Contains(r.Addresses, ip.Unmap()) {
			r.Addresses = append(r.Addresses, ip.Unmap())
		}
	}
	return r, true, nil
}

// thinPolicy leaves of an object's metadata its name, and of the rest its spec.
func thinPolicy(o runtime.Object) runtime.Object {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return o
	}
	t := &unstructured.Unstructured{Object: map[string]any{}}
	t.SetAPIVersion(u.GetAPIVersion())
	t.SetKind(u.GetKind())
	t.SetNamespace(u.GetNamespace())
	t.SetName(u.GetName())
	t.SetResourceVersion(u.GetResourceVersion())
	t.SetUID(u.GetUID())
	if spec, ok := u.Object["spec"]; ok {
		t.Object["spec"] = spec
	}
	return t
}

// readPolicy never fails for what an object says: one that cannot be understood is there nevertheless, and denies.
func readPolicy(obj any) (policyRecord, bool, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return policyRecord{}, false, fmt.Errorf("a %T is not a policy", obj)
	}
	o := policy.Object{APIVersion: u.GetAPIVersion(), Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName()}
	spec, err := json.Marshal(u.Object["spec"])
	if err != nil {
		return policyRecord{}, false, err
	}
	o.Spec = spec
	p, err := o.Policy()
	r := policyRecord{policy: p}
	if err != nil {
		r.odd = err.Error()
	}
	return r, true, nil
}
