// Package metrics is what a running daemon tells machines that watch it: Prometheus metrics, and two
// pages for whoever asks whether it lives and whether it carries traffic.
//
//	GET /metrics   the text format of Prometheus, or OpenMetrics where the client prefers it
//	GET /healthz   200 while the daemon answers
//	GET /readyz    200 while the path is programmed, else 503 and why it is not
//
// Every metric is made when it is asked for, from the answers of the API: nothing is counted twice,
// and nothing is counted here.
package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"weft/api"
)

// description is one metric. Its label values are given in the order of labels.
type description struct {
	name   string
	help   string
	kind   prometheus.ValueType
	labels []string
	desc   *prometheus.Desc
}

// Pods lists what is attached.
type Pods interface {
	Pods() ([]api.Pod, error)
}

// collector asks a daemon at each scrape. It implements prometheus.Collector.
type collector struct {
	daemon       api.Daemon
	pods         Pods
	descriptions []*description
	describe     describe
}

// describe holds the metrics by what they say; docs/reference.md has the same list.
type describe struct {
	info, ready, repairs, kernelDrops, rejected                                 *description
	rings                                                                       *description
	underlayMTU, innerMTU, nodes, problems, dataAge                             *description
	applyAttempts, applyFailures                                                *description
	peerWay, peerWayChanges, peerPackets, peerBytes, peerMTU                    *description
	peerEstablished, peerSessionAge, peerHandshakes, peerAttempts, peerRejected *description
	cookies, peerCookies                                                        *description
	laneTurns, laneReceived, laneCopied, laneSent, laneWaited, laneAge          *description
	stageCalls, stagePackets, stageTimed, stageSeconds, stageDrops              *description
	pods, podDrops                                                              *description
	policies, policyEnded, policyDenied, policyCounted                          *description
	bgpUp, bgpReceived, bgpAdvertised, bgpRoutes, bgpRefused                    *description
	meshNodes, meshLive, meshHeard, meshWaiting, meshBytes, meshRefused         *description
}

func newCollector(d api.Daemon, p Pods) *collector {
	c := &collector{daemon: d, pods: p}
	count := func(name, help string, labels ...string) *description {
		return c.add("weft_"+name, help, prometheus.CounterValue, labels)
	}
	gauge := func(name, help string, labels ...string) *description {
		return c.add("weft_"+name, help, prometheus.GaugeValue, labels)
	}
	c.describe = describe{
		info:          gauge("info", "Always 1; the labels say what runs.", "version", "node", "mode", "cipher", "control"),
		ready:         gauge("ready", "1 while the path for the newest state of the cluster is programmed."),
		underlayMTU:   gauge("underlay_mtu_bytes", "MTU of the underlay."),
		innerMTU:      gauge("inner_mtu_bytes", "Largest inner IP packet."),
		repairs:       count("repairs_total", "Kernel objects put back after somebody else removed or changed them."),
		kernelDrops:   count("kernel_drops_total", "Packets the kernel dropped around the path.", "reason"),
		rings:         count("ring_events_total", "What the kernel counts at AF_XDP rings (XDP_STATISTICS), since the path was opened.", "device", "queue", "attach", "counter"),
		rejected:      count("handshakes_rejected_total", "Handshake messages that no peer can be named for.", "reason"),
		cookies:       count("cookies_sent_total", "Cookies sent in answer to handshakes that no peer can be named for: the daemon was asked too much (sealed traffic)."),
		nodes:         gauge("nodes", "Nodes of the cluster, this one included; 0 until the control source has spoken."),
		problems:      gauge("problems", "What is wrong with the cluster's data at the moment; weft status names it."),
		dataAge:       gauge("data_age_seconds", "Time since the control source last confirmed the cluster's data."),
		applyAttempts: count("apply_attempts_total", "Attempts to program the cluster's state into the kernel."),
		applyFailures: gauge("apply_failures", "Failed attempts in a row; 0 when the newest state is in force."),

		peerPackets:     count("peer_packets_total", "Inner packets that passed (userspace modes).", "peer", "direction"),
		peerBytes:       count("peer_bytes_total", "Bytes of inner packets that passed (userspace modes).", "peer", "direction"),
		peerWay:         gauge("peer_way", "1 for the way by which the peer is reached, and its state; no way where none leads there.", "peer", "way", "state"),
		peerWayChanges:  count("peer_way_changes_total", "Times that the peer was reached by another way than before.", "peer"),
		peerMTU:         gauge("peer_mtu_bytes", "Largest inner IP packet towards the peer.", "peer"),
		peerEstablished: gauge("peer_session_established", "1 while there are keys with the peer (sealed traffic).", "peer"),
		peerSessionAge:  gauge("peer_session_age_seconds", "Time since the last handshake with the peer (sealed traffic).", "peer"),
		peerHandshakes:  count("peer_handshakes_total", "Handshakes completed with the peer (sealed traffic).", "peer"),
		peerAttempts:    gauge("peer_handshake_attempts", "Handshakes in a row that the peer did not answer (sealed traffic).", "peer"),
		peerRejected:    count("peer_rejected_total", "Messages and packets of the peer that were rejected (sealed traffic).", "peer", "reason"),
		peerCookies:     count("peer_cookies_total", "Cookies in place of answers to handshakes: sent to the peer's address (out), received from it (in) (sealed traffic).", "peer", "direction"),

		laneTurns:    count("lane_batches_total", "Batches the lane carried.", "lane"),
		laneReceived: count("lane_received_packets_total", "Packets the lane received; with the copied ones they are what it sent and what its stages dropped.", "lane"),
		laneCopied:   count("lane_copied_packets_total", "Packets the lane made itself, to flood others (mode tap).", "lane"),
		laneSent:     count("lane_sent_packets_total", "Packets the lane sent.", "lane"),
		laneWaited:   count("lane_waited_seconds_total", "Time the lane was blocked for packets.", "lane"),
		laneAge:      count("lane_seconds_total", "Time since the lane began; what is not waited is busy.", "lane"),
		stageCalls:   count("stage_calls_total", "Batches the stage handled.", "lane", "stage"),
		stagePackets: count("stage_packets_total", "Packets the stage handled.", "lane", "stage"),
		stageTimed:   count("stage_timed_packets_total", "Packets among them whose time was taken.", "lane", "stage"),
		stageSeconds: count("stage_timed_seconds_total", "Time the timed packets took.", "lane", "stage"),
		stageDrops:   count("drops_total", "Packets dropped; a series begins with its first drop.", "lane", "stage", "reason"),

		pods:     gauge("pods", "Pods attached to this node."),
		podDrops: count("pod_drops_total", "Packets of a pod that the check on its link did not let into the node; a series begins with its first drop.", "link", "namespace", "pod", "reason"),

		policies:      gauge("policies", "Network policies that are in force on this node; absent where they are off."),
		policyEnded:   count("policy_ended_connections_total", "Connections that stood and that a change of network policies denied."),
		policyDenied:  count("policy_denied_packets_total", "Packets that network policies denied; a series begins with the first policy that could.", "tier", "policy", "rule"),
		policyCounted: count("policy_packets_total", "Packets, but answers, that a rule allowed or logged, or that a staged policy would have denied or allowed.", "what", "tier", "policy", "rule"),

		bgpUp:         gauge("bgp_session_up", "1 while the BGP session with a node or a router is established; absent where BGP is off.", "peer", "node"),
		bgpReceived:   gauge("bgp_received_prefixes", "Prefixes that the peer tells of.", "peer", "node"),
		bgpAdvertised: gauge("bgp_advertised_prefixes", "Prefixes that the peer is told of.", "peer", "node"),
		bgpRoutes:     gauge("bgp_routes", "Prefixes whose next hops are learnt by BGP."),
		bgpRefused:    gauge("bgp_refused_prefixes", "Prefixes that peers tell of and that are not believed; weft bgp routes names the first 1000."),

		meshNodes:   gauge("mesh_nodes", "Nodes that are known of the mesh, this one included; absent where control.kind is another one."),
		meshLive:    gauge("mesh_live_nodes", "Nodes among them that are heard, this one included."),
		meshHeard:   gauge("mesh_node_live", "1 while the node is heard, 0 while it is known and silent.", "peer"),
		meshWaiting: gauge("mesh_waiting", "1 while this node is not in the mesh, or has no prefix yet; weft mesh status says why."),
		meshBytes:   count("mesh_bytes_total", "Bytes that nodes of the mesh told each other, sealed, without headers of IP, UDP and TCP.", "direction"),
		meshRefused: count("mesh_refused_total", "Packets and calls that were not taken: of another password, or of a clock that is wrong.", "reason"),
	}
	return c
}

func (c *collector) add(name, help string, kind prometheus.ValueType, labels []string) *description {
	d := &description{name: name, help: help, kind: kind, labels: labels, desc: prometheus.NewDesc(name, help, labels, nil)}
	c.descriptions = append(c.descriptions, d)
	return d
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descriptions {
		to <- d.desc
	}
}

// answer sends the metrics of one answer.
type answer struct {
	describe
	to chan<- prometheus.Metric
}

func (s answer) send(d *description, value float64, labels ...string) {
	m, err := prometheus.NewConstMetric(d.desc, d.kind, value, labels...)
	if err != nil { // a name that is not UTF-8 must not end the daemon
		m = prometheus.NewInvalidMetric(d.desc, err)
	}
	s.to <- m
}

// byReason sends one metric for each reason; the labels before it are given.
func (s answer) byReason(d *description, counts map[string]uint64, labels ...string) {
	for reason, n := range counts {
		s.send(d, float64(n), append(labels[:len(labels):len(labels)], reason)...)
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := answer{c.describe, to}
	status, lanes := c.daemon.Status(), c.daemon.Lanes()
	s.status(status)
	for _, l := range lanes {
		s.lane(l)
	}
	for _, p := range c.daemon.Peers() {
		s.peer(p, status, len(lanes) > 0)
	}
	if p, ok := c.daemon.(api.Policer); ok {
		s.policed(p.Policies())
	}
	if b, ok := c.daemon.(api.Speaker); ok {
		s.bgp(b.BGP())
	}
	if m, ok := c.daemon.(api.Mesher); ok {
		s.mesh(m.Mesh())
	}
	pods, err := c.pods.Pods()
	if err != nil {
		return // the log and `weft pods` say so
	}
	s.send(s.pods, float64(len(pods)))
	for _, p := range pods {
		s.byReason(s.podDrops, p.Drops, p.HostInterface, p.PodNamespace, p.PodName)
	}
}

func (s answer) policed(p api.Policies) {
	if !p.Enabled || p.Since.IsZero() {
		return
	}
	s.send(s.policies, float64(len(p.Policies)))
	s.send(s.policyEnded, float64(p.Ended))
	for _, d := range p.Denied {
		s.send(s.policyDenied, float64(d.Packets), d.Tier, d.Policy, d.Rule)
	}
	for _, c := range p.Counted {
		s.send(s.policyCounted, float64(c.Packets), c.What, c.Tier, c.Policy, c.Rule)
	}
}

func (s answer) bgp(b api.BGP) {
	if !b.Enabled {
		return
	}
	for _, p := range b.Sessions {
		peer := p.Peer.String()
		s.send(s.bgpUp, truth(p.Up), peer, p.Node)
		s.send(s.bgpReceived, float64(p.Received), peer, p.Node)
		s.send(s.bgpAdvertised, float64(p.Advertised), peer, p.Node)
	}
	s.send(s.bgpRoutes, float64(len(b.Routes)))
	s.send(s.bgpRefused, float64(len(b.Refused)+b.RefusedMore))
}

func (s answer) mesh(m api.Mesh) {
	if !m.Enabled {
		return
	}
	s.send(s.meshNodes, float64(m.Known))
	s.send(s.meshLive, float64(m.Live))
	s.send(s.meshWaiting, truth(m.Waiting != "" || m.Reason != ""))
	heard := map[string]bool{} // of two nodes with one name, any
	for _, n := range m.Nodes {
		if !n.Self {
			heard[n.Name] = heard[n.Name] || n.Live
		}
	}
	for name, live := range heard {
		s.send(s.meshHeard, truth(live), name)
	}
	s.send(s.meshBytes, float64(m.TxBytes), "out")
	s.send(s.meshBytes, float64(m.RxBytes), "in")
	s.send(s.meshRefused, float64(m.RefusedPassword), "password")
	s.send(s.meshRefused, float64(m.RefusedClock), "clock")
}

func (s answer) status(v api.Status) {
	s.send(s.info, 1, v.Version, v.Node, v.Mode, v.Cipher, v.Control.Kind)
	s.send(s.ready, truth(v.Ready))
	s.send(s.underlayMTU, float64(v.UnderlayMTU))
	s.send(s.innerMTU, float64(v.InnerMTU))
	s.send(s.repairs, float64(v.Repairs))
	s.byReason(s.kernelDrops, v.KernelDrops)
	for _, r := range v.Rings {
		s.byReason(s.rings, r.Counters, r.Device, strconv.Itoa(r.Queue), r.Attach)
	}
	s.byReason(s.rejected, v.Rejected)
	if v.Rejected != nil {
		s.send(s.cookies, float64(v.CookiesSent))
	}
	s.send(s.nodes, float64(v.Control.Nodes))
	s.send(s.problems, float64(len(v.Problems)))
	if !v.Control.AsOf.IsZero() {
		s.send(s.dataAge, v.Now.Sub(v.Control.AsOf).Seconds())
	}
	s.send(s.applyAttempts, float64(v.Apply.Attempts))
	s.send(s.applyFailures, float64(v.Apply.Failures))
}

// peer tells of a peer's traffic only where there are lanes that count it: elsewhere zero would be untrue.
func (s answer) peer(p api.Peer, v api.Status, counted bool) {
	s.send(s.peerWay, 1, p.Node, p.Way, p.State)
	s.send(s.peerWayChanges, float64(p.Changes), p.Node)
	if !p.Reached() {
		return
	}
	s.send(s.peerMTU, float64(p.MTU), p.Node)
	if counted {
		s.send(s.peerPackets, float64(p.TxPackets), p.Node, "out")
		s.send(s.peerPackets, float64(p.RxPackets), p.Node, "in")
		s.send(s.peerBytes, float64(p.TxBytes), p.Node, "out")
		s.send(s.peerBytes, float64(p.RxBytes), p.Node, "in")
	}
	if p.Session == nil {
		return
	}
	s.send(s.peerEstablished, truth(p.Session.Established), p.Node)
	if !p.Session.Since.IsZero() {
		s.send(s.peerSessionAge, v.Now.Sub(p.Session.Since).Seconds(), p.Node)
	}
	s.send(s.peerHandshakes, float64(p.Session.Handshakes), p.Node)
	s.send(s.peerAttempts, float64(p.Session.Attempts), p.Node)
	s.byReason(s.peerRejected, p.Session.Rejected, p.Node)
	s.send(s.peerCookies, float64(p.Session.CookiesSent), p.Node, "out")
	s.send(s.peerCookies, float64(p.Session.CookiesReceived), p.Node, "in")
}

func (s answer) lane(l api.Lane) {
	s.send(s.laneTurns, float64(l.Turns), l.Name)
	s.send(s.laneReceived, float64(l.Received), l.Name)
	s.send(s.laneCopied, float64(l.Copied), l.Name)
	s.send(s.laneSent, float64(l.Sent), l.Name)
	s.send(s.laneWaited, float64(l.Waited)/1e9, l.Name)
	s.send(s.laneAge, float64(l.Age)/1e9, l.Name)
	for _, st := range l.Stages {
		s.send(s.stageCalls, float64(st.Calls), l.Name, st.Name)
		s.send(s.stagePackets, float64(st.Packets), l.Name, st.Name)
		s.send(s.stageTimed, float64(st.Timed), l.Name, st.Name)
		s.send(s.stageSeconds, float64(st.Nanos)/1e9, l.Name, st.Name)
		s.byReason(s.stageDrops, st.Drops, l.Name, st.Name)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
