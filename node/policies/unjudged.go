package policies

import (
	"io"
	"os"
	"strings"
)

// unjudged names what passes the table by on this node; net is where the kernel tells of its network, /proc/thread-self/net.
//
// IPVS takes what is for a Service in the input hook and sends it on by the output hook (net/netfilter/ipvs/ip_vs_core.c), so that it never
// comes through forward.
func unjudged(net string) []string {
	f, err := os.Open(net + "/ip_vs")
	if err != nil {
		return nil // the kernel does not have it, or it is not loaded
	}
	defer f.Close()
	begin, _ := io.ReadAll(io.LimitReader(f, 4096))
	for line := range strings.Lines(string(begin)) {
		for _, kind := range []string{"TCP ", "UDP ", "SCTP ", "FWM "} {
			if strings.HasPrefix(line, kind) {
				return []string{"IPVS forwards Services on this node: connections of its pods to Services are judged only where they arrive, by the rules of ingress; run kube-proxy in mode nftables or iptables"}
			}
		}
	}
	return nil
}
