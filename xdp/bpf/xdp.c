//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only
//
// Two XDP programs that hand frames to AF_XDP sockets. Generated into Go by `go generate ./xdp/bpf`.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

// A UDP endpoint of ours. IPv4 addresses are v4-mapped (::ffff:a.b.c.d).
struct endpoint {
	__u8 addr[16];
	__u8 port[2]; // big-endian, as in the header
};

// One socket per receive queue; resized to the number of queues when loaded.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 64);
} sockets SEC(".maps");

// The tunnel's endpoints on this node. The value is the first byte of the datagrams that are for lanes; 0 = all
// are. What is not for lanes (handshakes) is for other sockets, by way of the kernel.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct endpoint);
	__type(value, __u8);
	__uint(max_entries, 64);
} endpoints SEC(".maps");

// The inside: a device of our own on which nobody but us listens. What finds no socket is dropped, or the
// host's stack would route it back to where it came from.
SEC("xdp")
int weft_inside(struct xdp_md *ctx)
{
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);
}

// The underlay: everything is the kernel's (ARP, ND, ICMP, SSH, other UDP, fragments, IPv4 options, IPv6
// extension headers, VLAN tags), except whole UDP datagrams to an endpoint of ours.
SEC("xdp")
int weft_underlay(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct endpoint to = {};
	struct ethhdr *eth = data;
	struct udphdr *udp;
	__u8 *first;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		if (ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
			return XDP_PASS;
		if (ip->frag_off & bpf_htons(0x3fff)) // more fragments, or an offset
			return XDP_PASS;
		to.addr[10] = to.addr[11] = 0xff;
		__builtin_memcpy(to.addr + 12, &ip->daddr, sizeof(ip->daddr));
		udp = (void *)(ip + 1);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		if (ip->nexthdr != IPPROTO_UDP)
			return XDP_PASS;
		__builtin_memcpy(to.addr, &ip->daddr, sizeof(to.addr));
		udp = (void *)(ip + 1);
	} else {
		return XDP_PASS;
	}
	if ((void *)(udp + 1) > end)
		return XDP_PASS;
	__builtin_memcpy(to.port, &udp->dest, sizeof(to.port));
	first = bpf_map_lookup_elem(&endpoints, &to);
	if (!first)
		return XDP_PASS;
	if (*first) {
		__u8 *payload = (void *)(udp + 1);

		if ((void *)(payload + 1) > end || *payload != *first)
			return XDP_PASS;
	}
	// A device may have more queues than we have lanes: their packets reach our socket by the kernel.
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}
