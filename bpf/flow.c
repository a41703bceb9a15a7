//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only
//
// The flow cache's programs: they watch how the node's own stack carries a flow between a pod and a VXLAN peer, and carry what
// user space has admitted past that stack. Generated into Go by `go generate ./bpf`. Package flowcache has who may enter, and when
// all that is remembered is forgotten.
//
//	pod ──▶ weft_from_pod (ingress of the pod's link) ─ ─ ▶ weft_left (egress of the underlay) ──▶
//	pod ◀── weft_to_pod (egress of the pod's link) ◀ ─ ─ weft_arrived (ingress of the underlay) ◀──
//
// Whatever a program does not know, or is not sure of, it leaves to the stack (TCX_NEXT), unchanged.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

// Of linux/bpf.h, for those whose headers are older than tcx.
#define NEXT -1 // TCX_NEXT
#define DROP 2  // TCX_DROP
#define DECAP_L3_IPV4 (1ULL << 7) // BPF_F_ADJ_ROOM_DECAP_L3_IPV4
#define DECAP_L3_IPV6 (1ULL << 8)

#define VXLAN_FLAGS 0x08000000 // a VNI, and nothing else (RFC 7348 §5)
#define DF 0x4000
#define CE 3
#define ECT0 2
#define CARRIED 0x7766 // skb->tc_index of what weft_from_pod sends: nothing that weft_left has to look at
#define AGAIN 20000000ULL // ns; so often at most user space is asked about a flow

// A flow as it is seen at one end. IPv4 addresses are v4-mapped (::ffff:a.b.c.d), ports big-endian.
struct key {
	__u8 src[16];
	__u8 dst[16];
	__u16 sport;
	__u16 dport;
	__u32 where; // outs: the pod's link; ins: the VNI; seen: 0
	__u8 proto;
	__u8 pad[3];
};

// An outer header as it was seen.
struct outer {
	__u8 src[16];
	__u8 dst[16];
	__u16 sport;   // big-endian
	__u16 df;      // the flags and offset of IPv4, big-endian
	__u8 tos;
	__u8 ttl;
	__u8 v6;
	__u8 dscp;     // of the inner header, six bits
	__u8 dmac[6];  // of the inner frame
	__u8 smac[6];
	__u32 dev;     // by which it left or came
};

// How the node's stack carried a flow. Each place writes its own part, and then in which generation that was.
struct sighting {
	__u64 from;    // it came from the pod
	__u64 left;    // it left by the underlay
	__u64 arrived; // its other direction came by the underlay
	__u64 to;      // and went to the pod
	__u64 asked;   // when user space was asked last, ns
	__u32 pod_from; // links
	__u32 pod_to;
	__u8 mac_from[6]; // the source of what came from the pod
	__u8 mac_to[12];  // destination and source of what went to it
	__u8 pad[6];
	struct outer out;
	struct outer in;
};

// What is sent of a flow.
struct out {
	__u64 gen;
	__u64 used; // ns
	__u64 packets;
	__u64 bytes;
	__u32 dev;  // the underlay's
	__u32 peer;
	__u32 mtu;  // of inner packets
	__u8 v6;    // the outer header
	__u8 dscp;  // of the inner header, six bits: the outer's came with it
	__u8 mac[6]; // the pod's
	__u32 nh_family;
	__u32 nh[4];
	__u32 pad;
	__u8 header[72]; // outer IP without length, id, ECN and checksum; UDP without length; VXLAN; inner Ethernet
};

// What comes of a flow.
struct in {
	__u64 gen;
	__u64 used;
	__u64 packets;
	__u64 bytes;
	__u32 dev; // the pod's link
	__u32 peer;
	__u8 mac[12]; // the pod's, the node's end's
	__u8 inner[6]; // to whom the inner frame is
	__u8 v6;
	__u8 pad;
	__u8 src[16]; // outer
	__u8 dst[16];
};

struct total {
	__u64 out_packets, out_bytes, in_packets, in_bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct key);
	__type(value, struct sighting);
	__uint(max_entries, 16384);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct key);
	__type(value, struct out);
	__uint(max_entries, 65536);
} outs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct key);
	__type(value, struct in);
	__uint(max_entries, 65536);
} ins SEC(".maps");

// By peer, numbered by user space: what flows that are forgotten have carried stays counted.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct total);
	__uint(max_entries, 8192);
} totals SEC(".maps");

// Flows that may be admitted, as struct key of seen.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} asks SEC(".maps");

// What was seen or admitted under another generation is as if it never had been.
volatile __u64 generation;

// Until then somebody hears of changes, ns of CLOCK_MONOTONIC. Later every flow is the stack's.
volatile __u64 heard_until;

volatile const __u16 port; // of VXLAN, big-endian
volatile const __u32 vni;

// What a flow is that nothing has been seen of.
struct sighting none;

// Packets that died here after their headers were changed: for want of memory.
volatile __u64 lost;

// What the programs need to know of a packet besides its flow.
struct about {
	__u32 len;     // the IP packet's, as it says
	__u32 headers; // IP and TCP or UDP
	__u8 tos;
	__u8 ttl;
	__u8 v6;
	__u8 control; // TCP with SYN, FIN or RST: it changes what the connection is
	__u8 bare;    // UDP without a checksum
	__u8 proto;
	__u16 check;  // of the IPv4 header
};

static __always_inline void mapped(__u8 *to, __u32 v4)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &v4, 4);
}

// flow reads an IP packet; false for what is always the stack's: fragments, IPv4 options, IPv6 extension headers, other protocols.
static __always_inline int flow(void *l3, void *end, __u16 type, struct key *k, struct about *a)
{
	void *l4;

	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(0xbfff))
			return 0; // reserved flag, more fragments, or an offset
		mapped(k->src, ip->saddr);
		mapped(k->dst, ip->daddr);
		k->proto = ip->protocol;
		a->len = bpf_ntohs(ip->tot_len);
		a->tos = ip->tos;
		a->ttl = ip->ttl;
		a->check = ip->check;
		a->v6 = 0;
		a->headers = sizeof(*ip);
		l4 = ip + 1;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return 0;
		__builtin_memcpy(k->src, &ip->saddr, 16);
		__builtin_memcpy(k->dst, &ip->daddr, 16);
		k->proto = ip->nexthdr;
		a->len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		a->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
		a->ttl = ip->hop_limit;
		a->v6 = 1;
		a->headers = sizeof(*ip);
		l4 = ip + 1;
	} else {
		return 0;
	}
	a->proto = k->proto;
	a->control = a->bare = 0;
	if (k->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || tcp->doff < 5)
			return 0;
		k->sport = tcp->source;
		k->dport = tcp->dest;
		a->control = tcp->syn || tcp->fin || tcp->rst;
		a->headers += tcp->doff * 4;
	} else if (k->proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return 0;
		k->sport = udp->source;
		k->dport = udp->dest;
		a->bare = udp->check == 0;
		a->headers += sizeof(*udp);
	} else {
		return 0;
	}
	return 1;
}

// reversed is the flow's other direction.
static __always_inline void reversed(struct key *to, const struct key *k)
{
	__builtin_memcpy(to->src, k->dst, 16);
	__builtin_memcpy(to->dst, k->src, 16);
	to->sport = k->dport;
	to->dport = k->sport;
	to->where = k->where;
	to->proto = k->proto;
	__builtin_memset(to->pad, 0, sizeof(to->pad));
}

static __always_inline int same(const __u8 *a, const __u8 *b, int n)
{
	for (int i = 0; i < n; i += 2)
		if (*(__u16 *)(a + i) != *(__u16 *)(b + i))
			return 0;
	return 1;
}

// mark writes in which generation a place has seen the flow, behind what it saw.
static __always_inline void mark(__u64 *at, __u64 gen)
{
	__sync_lock_test_and_set(at, gen);
}

// ask tells user space of a flow that has been seen everywhere, by the same link and MAC.
static __always_inline void ask(struct sighting *s, struct key *k, __u64 gen)
{
	__u64 now;

	if (s->from != gen || s->left != gen || s->arrived != gen || s->to != gen || s->pod_from != s->pod_to || !same(s->mac_from, s->mac_to, 6))
		return;
	now = bpf_ktime_get_ns();
	if (now - s->asked < AGAIN)
		return;
	s->asked = now;
	bpf_ringbuf_output(&asks, k, sizeof(*k), 0);
}

// forget takes a flow out of the cache, both ways; k is as the pod sends it.
static __always_inline void forget(struct key *k)
{
	struct key back;

	bpf_map_delete_elem(&outs, k);
	reversed(&back, k);
	back.where = vni;
	bpf_map_delete_elem(&ins, &back);
	k->where = 0;
	bpf_map_delete_elem(&seen, k);
}

static __always_inline __u32 packets(struct __sk_buff *skb) { return skb->gso_segs ?: 1; }

// encapsulated is the ECN of an outer header (RFC 6040 §4.1, as INET_ECN_encapsulate has it).
static __always_inline __u8 encapsulated(__u8 tos)
{
	__u8 ecn = tos & 3;
	return ecn == CE ? ECT0 : ecn;
}

// The check of an IPv4 header with a TTL one lower (RFC 1624, as ip_decrease_ttl has it).
static __always_inline __u16 lower(__u16 check)
{
	__u32 sum = check;

	sum += bpf_htons(0x0100);
	return sum + (sum >= 0xffff);
}

// decrease takes one from the TTL of the IP header at an offset.
static __always_inline int decrease(struct __sk_buff *skb, __u32 at, struct about *a)
{
	__u8 hop = a->ttl - 1;

	if (a->v6)
		return bpf_skb_store_bytes(skb, at + 7, &hop, 1, 0);
	struct {
		__u8 ttl, proto;
		__u16 check;
	} field = {hop, a->proto, lower(a->check)};
	return bpf_skb_store_bytes(skb, at + 8, &field, sizeof(field), 0);
}

SEC("tcx/ingress")
int weft_from_pod(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct key k = {};
	struct about a = {};
	__u64 gen = generation, now;
	struct total *t;
	struct out *f;
	__u32 wide, len = skb->len;

	if ((void *)(eth + 1) > end || skb->vlan_present || !flow(eth + 1, end, eth->h_proto, &k, &a))
		return NEXT;
	k.where = skb->ifindex;
	f = bpf_map_lookup_elem(&outs, &k);
	if (!f || f->gen != gen || a.control) {
		struct sighting *s;

		if (f && a.control) {
			forget(&k);
			return NEXT;
		}
		if (a.control)
			return NEXT;
		k.where = 0;
		s = bpf_map_lookup_elem(&seen, &k);
		if (!s) {
			bpf_map_update_elem(&seen, &k, &none, BPF_NOEXIST);
			s = bpf_map_lookup_elem(&seen, &k);
			if (!s)
				return NEXT;
		}
		s->pod_from = skb->ifindex;
		__builtin_memcpy(s->mac_from, eth->h_source, 6);
		mark(&s->from, gen);
		ask(s, &k, gen);
		return NEXT;
	}
	now = bpf_ktime_get_coarse_ns();
	if (now > heard_until)
		return NEXT;
	wide = skb->gso_size ? a.headers + skb->gso_size : a.len;
	if (!same(f->mac, eth->h_source, 6) || a.tos >> 2 != f->dscp || a.ttl <= 1 || wide > f->mtu || len != a.len + sizeof(*eth) || len + 100 > 0xffff)
		return NEXT;

	if (f->v6) {
		struct {
			__u8 eth[14];
			__u8 rest[70];
		} h;
		__u16 size = bpf_htons(len + 16);
		__u32 word;

		if (bpf_skb_adjust_room(skb, 70, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(14) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH))
			return NEXT;
		__builtin_memset(h.eth, 0, 12);
		h.eth[12] = 0x86;
		h.eth[13] = 0xdd;
		__builtin_memcpy(h.rest, f->header, 70);
		__builtin_memcpy(&word, h.rest, 4);
		word |= bpf_htonl((__u32)encapsulated(a.tos) << 20);
		__builtin_memcpy(h.rest, &word, 4);
		__builtin_memcpy(h.rest + 4, &size, 2);
		__builtin_memcpy(h.rest + 40 + 4, &size, 2);
		h.rest[68] = a.v6 ? 0x86 : 0x08;
		h.rest[69] = a.v6 ? 0xdd : 0x00;
		if (bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0) || decrease(skb, 84, &a))
			goto lost;
	} else {
		struct {
			__u8 eth[14];
			__u8 rest[50];
		} h;
		__u16 size = bpf_htons(len + 16 + 20), udp = bpf_htons(len + 16), id = 0, word;
		__u32 sum = 0;

		if (bpf_skb_adjust_room(skb, 50, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(14) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH))
			return NEXT;
		__builtin_memset(h.eth, 0, 12);
		h.eth[12] = 0x08;
		h.eth[13] = 0x00;
		__builtin_memcpy(h.rest, f->header, 50);
		h.rest[1] |= encapsulated(a.tos);
		__builtin_memcpy(h.rest + 2, &size, 2);
		if (!(h.rest[6] & 0x40)) // it may be cut, and then is put together by this
			id = bpf_get_prandom_u32();
		__builtin_memcpy(h.rest + 4, &id, 2);
#pragma unroll
		for (int i = 0; i < 20; i += 2) {
			__builtin_memcpy(&word, h.rest + i, 2);
			sum += word;
		}
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		word = ~sum;
		__builtin_memcpy(h.rest + 10, &word, 2);
		__builtin_memcpy(h.rest + 20 + 4, &udp, 2);
		h.rest[48] = a.v6 ? 0x86 : 0x08;
		h.rest[49] = a.v6 ? 0xdd : 0x00;
		if (bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0) || decrease(skb, 64, &a))
			goto lost;
	}
	f->used = now;
	__sync_fetch_and_add(&f->packets, packets(skb));
	__sync_fetch_and_add(&f->bytes, a.len);
	t = bpf_map_lookup_elem(&totals, &f->peer);
	if (t) {
		t->out_packets += packets(skb);
		t->out_bytes += a.len;
	}
	skb->tc_index = CARRIED;
	if (!f->nh_family)
		return bpf_redirect_neigh(f->dev, 0, 0, 0);
	struct bpf_redir_neigh nh = {.nh_family = f->nh_family};
	__builtin_memcpy(nh.ipv6_nh, f->nh, 16);
	return bpf_redirect_neigh(f->dev, &nh, sizeof(nh), 0);
lost:
	__sync_fetch_and_add(&lost, 1);
	return DROP;
}

// What a VXLAN packet of ours is made of.
struct tunnel {
	struct ethhdr *inner;
	__u32 size; // of all headers before the inner IP packet, the outer Ethernet's too
	__u32 udp_len;
	__u32 len;  // the outer IP packet's, as it says
	__u16 check;
};

// open reads the outer headers of a packet of our network; false where it is none.
static __always_inline int open(void *data, void *end, struct outer *o, struct tunnel *w)
{
	struct ethhdr *eth = data;
	struct udphdr *udp;
	__u32 *vx;

	if ((void *)(eth + 1) > end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(0xbfff))
			return 0;
		mapped(o->src, ip->saddr);
		mapped(o->dst, ip->daddr);
		o->df = ip->frag_off;
		o->tos = ip->tos;
		o->ttl = ip->ttl;
		o->v6 = 0;
		w->len = bpf_ntohs(ip->tot_len);
		w->udp_len = w->len - sizeof(*ip);
		w->size = sizeof(*eth) + sizeof(*ip);
		udp = (void *)(ip + 1);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_UDP)
			return 0;
		__builtin_memcpy(o->src, &ip->saddr, 16);
		__builtin_memcpy(o->dst, &ip->daddr, 16);
		o->df = 0;
		o->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
		o->ttl = ip->hop_limit;
		o->v6 = 1;
		w->udp_len = bpf_ntohs(ip->payload_len);
		w->len = w->udp_len + sizeof(*ip);
		w->size = sizeof(*eth) + sizeof(*ip);
		udp = (void *)(ip + 1);
	} else {
		return 0;
	}
	vx = (void *)(udp + 1);
	w->inner = (void *)(vx + 2);
	if ((void *)(w->inner + 1) > end || udp->dest != port || vx[0] != bpf_htonl(VXLAN_FLAGS) || vx[1] != bpf_htonl(vni << 8))
		return 0;
	if (w->udp_len != bpf_ntohs(udp->len))
		return 0;
	o->sport = udp->source;
	w->check = udp->check;
	__builtin_memcpy(o->dmac, w->inner->h_dest, 6);
	__builtin_memcpy(o->smac, w->inner->h_source, 6);
	w->size += sizeof(*udp) + 8 + sizeof(*eth);
	return 1;
}

SEC("tcx/egress")
int weft_left(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 gen = generation;
	struct outer o = {};
	struct tunnel w = {};
	struct key k = {};
	struct about a = {};
	struct sighting *s;

	if (skb->tc_index == CARRIED || skb->vlan_present || !open(data, end, &o, &w) || !flow(w.inner + 1, end, w.inner->h_proto, &k, &a) || a.control)
		return NEXT;
	s = bpf_map_lookup_elem(&seen, &k);
	if (!s)
		return NEXT;
	o.dscp = a.tos >> 2;
	o.dev = skb->ifindex;
	s->out = o;
	mark(&s->left, gen);
	ask(s, &k, gen);
	return NEXT;
}

SEC("tcx/ingress")
int weft_arrived(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 gen = generation, flags, now;
	struct outer o = {};
	struct tunnel w = {};
	struct key k = {};
	struct about a = {};
	struct ethhdr eth;
	struct total *t;
	struct in *f;
	__u32 len = skb->len;

	if (skb->vlan_present || skb->pkt_type != 0) // 0: it is for this node
		return NEXT;
	if (!open(data, end, &o, &w) || !flow(w.inner + 1, end, w.inner->h_proto, &k, &a)) {
		// Drivers may leave headers outside of what programs can read.
		if (skb->data_end - skb->data >= 150 || skb->data_end - skb->data >= len || bpf_skb_pull_data(skb, len < 160 ? len : 160))
			return NEXT;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (!open(data, end, &o, &w) || !flow(w.inner + 1, end, w.inner->h_proto, &k, &a))
			return NEXT;
	}
	k.where = vni;
	f = bpf_map_lookup_elem(&ins, &k);
	if (!f || f->gen != gen || a.control) {
		struct key out = {};
		struct sighting *s;

		if (f && a.control) {
			reversed(&out, &k);
			out.where = f->dev;
			forget(&out);
			return NEXT;
		}
		if (a.control)
			return NEXT;
		reversed(&out, &k);
		out.where = 0;
		s = bpf_map_lookup_elem(&seen, &out);
		if (!s)
			return NEXT;
		o.dscp = a.tos >> 2;
		o.dev = skb->ifindex;
		s->in = o;
		mark(&s->arrived, gen);
		ask(s, &out, gen);
		return NEXT;
	}
	now = bpf_ktime_get_coarse_ns();
	if (now > heard_until)
		return NEXT;
	// The stack answers what has lived too long, and puts together ECN where it is not as the sender's stack left it (RFC 6040 §4.2). It
	// checks outer sums; what passes here has a sum of its own inside.
	if (f->v6 != o.v6 || !same(f->src, o.src, 16) || !same(f->dst, o.dst, 16) || !same(f->inner, o.dmac, 6) || a.ttl <= 1 ||
	    (o.tos & 3) != encapsulated(a.tos) || (a.bare && w.check) || len != w.len + sizeof(eth) || len != a.len + w.size)
		return NEXT;
	// A super-packet of UDP may be cut again on its way to the socket, and the kernel would take it for a tunnel's: skb->encapsulation
	// and the type of GSO stay behind when headers are taken off here.
	if (skb->gso_size && a.proto != IPPROTO_TCP)
		return NEXT;

	flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	if (a.v6 != o.v6)
		flags |= a.v6 ? DECAP_L3_IPV6 : DECAP_L3_IPV4;
	__builtin_memcpy(&eth, f->mac, 12);
	eth.h_proto = a.v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (bpf_skb_adjust_room(skb, o.v6 ? -70 : -50, BPF_ADJ_ROOM_MAC, flags))
		return NEXT;
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) || decrease(skb, sizeof(eth), &a)) {
		__sync_fetch_and_add(&lost, 1);
		return DROP;
	}
	f->used = now;
	__sync_fetch_and_add(&f->packets, packets(skb));
	__sync_fetch_and_add(&f->bytes, a.len);
	t = bpf_map_lookup_elem(&totals, &f->peer);
	if (t) {
		t->in_packets += packets(skb);
		t->in_bytes += a.len;
	}
	return bpf_redirect_peer(f->dev, 0);
}

SEC("tcx/egress")
int weft_to_pod(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 gen = generation;
	struct ethhdr *eth = data;
	struct key k = {}, out = {};
	struct about a = {};
	struct sighting *s;

	if ((void *)(eth + 1) > end || skb->vlan_present || !flow(eth + 1, end, eth->h_proto, &k, &a) || a.control)
		return NEXT;
	reversed(&out, &k);
	s = bpf_map_lookup_elem(&seen, &out);
	if (!s)
		return NEXT;
	s->pod_to = skb->ifindex;
	__builtin_memcpy(s->mac_to, eth, 12);
	mark(&s->to, gen);
	ask(s, &out, gen);
	return NEXT;
}
