package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft/api"
	"weft/internal/ipnet"
)

// result turns the daemon's answer into what the runtime wants to know. prev is what plugins before
// us in the chain reported, or nil; it is passed on and added to.
func result(a api.AttachResult, prev types.Result, dns types.DNS, asked string) (*types100.Result, error) {
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if prev != nil {
		p, err := types100.NewResultFromResult(prev)
		if err != nil {
			return nil, fmt.Errorf("prevResult: %w", err)
		}
		r = p
		if dns.IsEmpty() {
			dns = r.DNS
		}
	}
	mtu := a.MTU
	if asked != types100.ImplementedSpecVersion {
		mtu = 0 // came with 1.1.0
	}
	pod := len(r.Interfaces) + 1
	r.Interfaces = append(r.Interfaces,
		&types100.Interface{Name: a.HostInterface, Mtu: mtu},
		&types100.Interface{Name: a.PodInterface.Name, Mac: a.PodInterface.MAC, Mtu: mtu, Sandbox: a.PodInterface.Netns})
	for _, ip := range a.IPs {
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: types100.Int(pod), Address: *ipnet.Of(ip.Address), Gateway: netIP(ip.Gateway)})
	}
	for _, route := range a.Routes {
		r.Routes = append(r.Routes, &types.Route{Dst: *ipnet.Of(route.Dst), GW: netIP(route.Gateway)})
	}
	r.DNS = dns
	return r, nil
}

// expectation is the reverse: what of a previous result is ours to hold the kernel to. Plugins after
// us may have added to it, or changed the MAC address or the MTU and said so in it.
func expectation(prev types.Result, ifname, netns string) (a api.AttachResult, err error) {
	r, err := types100.NewResultFromResult(prev)
	if err != nil {
		return a, fmt.Errorf("prevResult: %w", err)
	}
	pod := -1
	for i, l := range r.Interfaces {
		switch {
		case l.Sandbox == "" && a.HostInterface == "" && strings.HasPrefix(l.Name, "weft"):
			a.HostInterface = l.Name
		case l.Sandbox != "" && l.Name == ifname && pod < 0:
			pod = i
			a.PodInterface, a.MTU = api.PodInterface{Name: l.Name, MAC: l.Mac, Netns: l.Sandbox}, l.Mtu
		}
	}
	if pod < 0 {
		return a, fmt.Errorf("prevResult has no interface %s in a sandbox", ifname)
	}
	if a.PodInterface.Netns != netns {
		return a, fmt.Errorf("prevResult has %s in %s, CNI_NETNS is %s", ifname, a.PodInterface.Netns, netns)
	}
	for _, ip := range r.IPs {
		if ip.Interface != nil && *ip.Interface == pod {
			a.IPs = append(a.IPs, api.PodIP{Address: prefix(ip.Address), Gateway: addr(ip.Gateway)})
		}
	}
	if len(a.IPs) == 0 {
		return a, fmt.Errorf("prevResult has no address on %s", ifname)
	}
	for _, route := range r.Routes {
		a.Routes = append(a.Routes, api.PodRoute{Dst: prefix(route.Dst), Gateway: addr(route.GW)})
	}
	return a, nil
}

func netIP(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

// prefix is the zero Prefix where n is none.
func prefix(n net.IPNet) netip.Prefix {
	ones, bits := n.Mask.Size()
	a := addr(n.IP)
	if bits == 128 && a.Is4() { // ::ffff:a.b.c.d/120
		ones -= 96
	}
	return netip.PrefixFrom(a, ones)
}

// addr is the zero Addr where ip is none.
func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
