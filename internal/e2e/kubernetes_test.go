package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft/internal/nettest"
)

// TestKubernetes: two daemons find each other through a real kube-apiserver on the first node, which
// is killed under traffic and comes back: no packet is lost. scripts/test-long builds the server.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	binary := nettest.RequireGiven(t, "WEFT_KUBE_APISERVER")
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, mode := range []string{"vxlan", "tun-gso"} {
		t.Run(mode, func(t *testing.T) {
			k := startKubernetes(prepare(t, mode, 4, nettest.ClusterOptions{}), binary)
			a, b := k.Nodes[0], k.Nodes[1]
			for _, n := range k.Nodes {
				k.register(n, n.Prefixes...)
			}
			k.control = fmt.Sprintf("{kind: kubernetes, kubernetes: {kubeconfig: %s}}", k.kubeconfig)
			k.iface = a.Iface
			k.launch()
			for _, n := range k.Nodes {
				k.available(n, "WeftIsUp")
			}

			traffic := a.Pod.MustStart(t, "ping", "-n", "-i", "0.01", b.PodAddrs[0].String())
			k.process.Kill()
			k.tells(a, "does not answer")
			k.tells(b, "does not answer")
			k.start()
			k.tellsNothing(a)
			k.tellsNothing(b)
			traffic.Signal(os.Interrupt)
			<-traffic.Done()
			if sent, received := replies(traffic.Output()); received == 0 || sent-received > 1 {
				t.Errorf("%s", traffic.Output()[max(0, len(traffic.Output())-300):])
			} else {
				t.Logf("%d packets sent, %d received", sent, received)
			}
			k.deleteNode(b)
			k.noRoute(a, b.PodAddrs[0])
		})
	}
}

// deleteNode deletes a node's Node object.
func (k *kubeNodes) deleteNode(n *nettest.ClusterNode) {
	k.t.Helper()
	k.must(http.MethodDelete, nodesPath+"/"+n.Name, "", "")
}

// noRoute waits until a node has no route to an address.
func (k *kubeNodes) noRoute(n *nettest.ClusterNode, to netip.Addr) {
	k.t.Helper()
	k.eventually(fmt.Sprintf("%s has no route to %v", n.Name, to), func() error {
		if _, err := n.NS.Netlink().RouteGet(to.AsSlice()); err == nil {
			return errors.New("there is one")
		}
		return nil
	})
}

// TestKubernetesFlanneld joins two weft nodes, one of which lets the kernel carry its traffic and one of which carries it
// itself, to a node that runs the real flanneld with --kube-subnet-mgr, through a real kube-apiserver: all ways work, and
// who is deleted is gone. scripts/test-long builds both programs.
func TestKubernetesFlanneld(t *testing.T) {
	t.Parallel()
	binary, flanneld := nettest.RequireGiven(t, "WEFT_KUBE_APISERVER"), nettest.RequireGiven(t, "WEFT_FLANNELD")
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "tcpdump", "ip")
	k := startKubernetes(prepare(t, "vxlan", 4, nettest.ClusterOptions{Nodes: 3}), binary)
	kernel, user, far := k.Nodes[0], k.Nodes[1], k.Nodes[2]
	k.network = k.Network()[:1]
	k.modes = map[string]string{user.Name: "tun-gso"}
	k.iface = kernel.Iface
	for _, n := range k.Nodes {
		k.register(n, n.Prefixes[0])
	}
	k.writeFile(k.file("net-conf.json"), `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`)
	flannel := far.NS.MustStart(t, "env", "NODE_NAME="+far.Name, flanneld, "--kube-subnet-mgr", "--kubeconfig-file="+k.kubeconfig, "--net-config-path="+k.file("net-conf.json"),
		"--iface="+far.Iface, "--subnet-file="+k.path(far, "subnet.env"), "--iptables-forward-rules=false", "--v=1")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("flanneld:\n%s", flannel.Output())
		}
	})
	for _, n := range []*nettest.ClusterNode{kernel, user} {
		k.control = fmt.Sprintf("{kind: kubernetes, subnet_env: %s, kubernetes: {kubeconfig: %s, schema: flannel}}", k.path(n, "subnet.env"), k.kubeconfig)
		k.cluster.start(n)
		k.ready(n)
	}
	capture := user.NS.MustStart(t, "tcpdump", "-n", "-l", "-v", "-c", "8", "-i", user.Iface, "udp port 8472 and host "+far.Underlay[0].String())
	k.eventually("tcpdump listens", func() error {
		if !strings.Contains(capture.Output(), "listening on") {
			return errors.New(capture.Output())
		}
		return nil
	})
	for _, from := range k.Nodes {
		for _, to := range k.Nodes {
			if from == to {
				continue
			}
			addr := to.PodAddrs[0]
			k.eventually(fmt.Sprintf("pod of %s reaches %v", from.Name, addr), func() error { return ping(from.Pod, addr) })
			k.eventually(fmt.Sprintf("%s itself reaches %v", from.Name, addr), func() error { return ping(from.NS, addr) })
			if err := bulk(from.Pod, to.Pod, addr, 4<<20); err != nil {
				t.Errorf("%s → %s: %v", from.Name, to.Name, err)
			}
		}
	}
	<-capture.Done()
	t.Logf("%s, tcpdump:\n%s", user.Name, capture.Output())

	k.available(kernel, "WeftIsUp")
	k.available(user, "WeftIsUp")
	k.available(far, "FlannelIsUp")
	for _, n := range k.Nodes {
		o := k.node(n)
		t.Logf("Node %s: %v\nannotations: %v\nconditions: %v", n.Name, o.Spec.PodCIDRs, o.Metadata.Annotations, o.Status.Conditions)
		for key, want := range map[string]string{"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": n.Underlay[0].String()} {
			if got := o.Metadata.Annotations["flannel.alpha.coreos.com/"+key]; got != want {
				t.Errorf("%s: annotation %s is %q, want %q", n.Name, key, got, want)
			}
		}
	}
	dump := func(n *nettest.ClusterNode, cmds ...string) {
		for _, cmd := range cmds {
			t.Logf("%s# %s\n%s", n.Name, cmd, n.NS.MustRun(t, "sh", "-ec", cmd))
		}
	}
	for _, n := range []*nettest.ClusterNode{kernel, user} {
		sameSubnetEnv(t, far, k.path(far, "subnet.env"), n, k.path(n, "subnet.env"))
		dump(n, weft+" nodes --socket "+k.path(n, "sock"), "cat "+k.path(n, "subnet.env"), "ip route")
	}
	dump(kernel, "ip -d link show weft-vx4", "ip neigh show dev weft-vx4", "bridge fdb show dev weft-vx4")
	dump(far, "ip route", "bridge fdb show dev flannel.1")

	// Who is deleted is gone: from weft's nodes where flanneld's goes, from flanneld's where one of weft's does.
	k.deleteNode(far)
	k.noRoute(kernel, far.PodAddrs[0])
	k.noRoute(user, far.PodAddrs[0])
	if err := ping(kernel.Pod, user.PodAddrs[0]); err != nil {
		t.Errorf("the others are disturbed: %v", err)
	}
	k.deleteNode(user)
	k.noRoute(kernel, user.PodAddrs[0])
	k.eventually("flanneld has no route to a deleted weft node", func() error {
		out, err := far.NS.Run("ip", "route", "show", user.Prefixes[0].String())
		if err == nil && strings.TrimSpace(out) != "" {
			err = errors.New(out)
		}
		return err
	})
}
