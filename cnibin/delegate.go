package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft/api"
)

// delegate is the plugin named in ipam, called with our own environment and configuration as the
// specification wants it ("Section 4: Plugin Delegation").
type delegate struct {
	plugin string
	conf   []byte
}

// add has the plugin give out addresses. Where it fails, what it may have done is the caller's to undo.
func (d delegate) add(ctx context.Context) (*types100.Result, error) {
	r, err := invoke.DelegateAdd(ctx, d.plugin, d.conf, nil)
	if err != nil {
		return nil, d.explain("ADD", err)
	}
	result, err := types100.NewResultFromResult(r)
	if err == nil && len(result.IPs) == 0 {
		err = fmt.Errorf("it gave no address")
	}
	if err != nil {
		return nil, d.explain("ADD", err)
	}
	return result, nil
}

// release takes an attachment away and has del give its addresses back, in an order that may be cut off at any point and
// be repeated: the interface goes, the addresses go, and only then the daemon forgets it.
func (d delegate) release(ctx context.Context, daemon *api.Client, q api.DetachRequest, del func(context.Context) error) error {
	q.Keep = true
	if err := daemon.Detach(ctx, q); err != nil {
		return err
	}
	if err := del(ctx); err != nil {
		return err
	}
	q.Keep = false
	return daemon.Detach(ctx, q)
}

func (d delegate) del(ctx context.Context) error {
	return d.explain("DEL", invoke.DelegateDel(ctx, d.plugin, d.conf, nil))
}

func (d delegate) check(ctx context.Context) error {
	return d.explain("CHECK", invoke.DelegateCheck(ctx, d.plugin, d.conf, nil))
}

func (d delegate) status(ctx context.Context) error {
	return d.explain("STATUS", invoke.DelegateStatus(ctx, d.plugin, d.conf, nil))
}

func (d delegate) gc(ctx context.Context) error {
	return d.explain("GC", invoke.DelegateGC(ctx, d.plugin, d.conf, nil))
}

// delOther gives back the addresses of another attachment than that of this call: plugins like
// host-local do nothing on GC.
func (d delegate) delOther(ctx context.Context, a api.Attachment) error {
	path, err := invoke.FindInPath(d.plugin, pluginPath())
	if err == nil {
		args := &invoke.Args{Command: "DEL", ContainerID: a.ContainerID, IfName: a.IfName, Path: os.Getenv("CNI_PATH")}
		err = invoke.ExecPluginWithoutResult(ctx, path, d.conf, args, nil)
	}
	return d.explain("DEL of "+a.ContainerID+" "+a.IfName, err)
}

// explain says whose error it is and keeps the code.
func (d delegate) explain(command string, err error) error {
	if err == nil {
		return nil
	}
	out := types.NewError(types.ErrInternal, fmt.Sprintf("ipam plugin %s: %s: %v", d.plugin, command, err), "")
	if e, ok := err.(*types.Error); ok && e.Code != 0 {
		out = types.NewError(e.Code, fmt.Sprintf("ipam plugin %s: %s: %s", d.plugin, command, e.Msg), e.Details)
	}
	return out
}

// delegated turns the plugin's answer into the daemon's question. Its default routes are left out:
// the daemon gives every pod one. A route has to lead where every packet of the pod goes, to the
// node; what asks for more is refused rather than left out.
func (d delegate) delegated(r *types100.Result, q *api.AttachRequest) error {
	gateways := map[string]bool{"": true}
	for _, ip := range r.IPs {
		q.Delegated = append(q.Delegated, api.DelegatedIP{Address: prefix(ip.Address), Gateway: addr(ip.Gateway)})
		gateways[ip.Gateway.String()] = true
	}
	for _, route := range r.Routes {
		if route.GW != nil && !gateways[route.GW.String()] || route.MTU != 0 || route.AdvMSS != 0 || route.Priority != 0 || route.Table != nil || route.Scope != nil {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("ipam plugin %s: route %v asks for more than weft can do", d.plugin, route),
				"a route may have dst, and gw where it is the address's gateway")
		}
		if dst := prefix(route.Dst); dst.Bits() != 0 {
			q.Routes = append(q.Routes, dst)
		}
	}
	return nil
}

func (c *conf) delegate(a *skel.CmdArgs) (delegate, bool) {
	return delegate{c.IPAM.Type, a.StdinData}, c.IPAM.Type != ""
}
