package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/ns"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft/api"
)

// Error codes: the specification's that the library does not name, and our own from 100.
const (
	codeUnavailable uint = 50 // STATUS: ADD cannot be served

	codeExhausted   uint = 100 // no address is left in the node's prefix
	codeNotInPrefix uint = 101 // an address asked for is not this node's
	codeExists      uint = 102 // the attachment, the interface or the address is there already
	codeMismatch    uint = 103 // CHECK: the attachment is not as it was reported
)

// failed turns an error of the daemon or of the way to it into one of the protocol.
func failed(err error) error {
	var protocol *types.Error
	var daemon *api.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &protocol):
		return protocol
	case errors.Is(err, api.ErrUnreachable):
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	case !errors.As(err, &daemon):
		return types.NewError(types.ErrInternal, err.Error(), "")
	}
	code, known := map[string]uint{
		api.CodeUnavailable: types.ErrTryAgainLater, api.CodeExhausted: codeExhausted, api.CodeNotInPrefix: codeNotInPrefix, api.CodeExists: codeExists,
		api.CodeMismatch: codeMismatch, api.CodeNoNetns: types.ErrUnknownContainer, api.CodeNotFound: types.ErrUnknownContainer,
		api.CodeInvalid: types.ErrInvalidNetworkConfig,
	}[daemon.Code]
	if !known {
		code = types.ErrInternal
	}
	return types.NewError(code, daemon.Text, "")
}

// add attaches a container. Whatever fails, nothing of the attempt stays.
func add(a *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := decode(a.StdinData)
	if err != nil {
		return err
	}
	w, err := c.podRequest(a)
	if err != nil {
		return err
	}
	if err := foreign(a); err != nil { // the library looks only afterwards
		return err
	}
	if _, err := os.Stat(a.Netns); errors.Is(err, fs.ErrNotExist) { // before a delegate gives out addresses
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("network namespace %s does not exist", a.Netns), "")
	}
	daemon := api.NewClient(c.Socket)
	defer daemon.Close()
	q := api.AttachRequest{ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, Network: c.Name,
		PodNamespace: w.podNamespace, PodName: w.podName, IPs: w.ips, MAC: w.mac, MTU: c.MTU}
	// Before anything is done: a failed second ADD must not take from the first what it has.
	if err := absent(ctx, daemon, q); err != nil {
		return failed(err)
	}
	undo := func() {}
	var dns types.DNS
	d, delegates := c.delegate(a)
	if delegates {
		// First, so that a call that is killed leaves an attachment of which DEL and GC know.
		announced := api.AnnounceRequest{ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, Network: c.Name}
		if err := daemon.Announce(ctx, announced); err != nil {
			return failed(err)
		}
		undo = func() {
			err := d.del(ctx)
			if err == nil {
				err = daemon.Detach(ctx, detach(a, c))
			}
			if err != nil { // DEL, which follows, does it again; the failure before is what is reported
				fmt.Fprintf(os.Stderr, "%s: %v\n", self, err)
			}
		}
		given, err := d.add(ctx)
		if err == nil {
			q.IPs, dns = nil, given.DNS // the plugin has read itself which addresses are asked for
			err = d.delegated(given, &q)
		}
		if err != nil {
			undo()
			return err
		}
	}
	attached, err := daemon.Attach(ctx, q)
	var refused *api.Error
	if errors.As(err, &refused) { // then the daemon has left nothing
		undo()
		return failed(err)
	}
	var r *types100.Result
	if err == nil {
		r, err = result(attached, c.PrevResult, c.dns(dns), c.CNIVersion)
	}
	if err == nil {
		err = types.PrintResult(r, c.CNIVersion)
	}
	if err != nil {
		away := detach(a, c)
		away.Keep = delegates
		if gone := daemon.Detach(ctx, away); gone != nil {
			fmt.Fprintf(os.Stderr, "%s: take the interface away again: %v\n", self, gone)
			return failed(err) // DEL, which follows, gives the addresses back after it
		}
		undo()
	}
	return failed(err)
}

// absent fails where the attachment exists.
func absent(ctx context.Context, daemon *api.Client, q api.AttachRequest) error {
	pods, err := daemon.Pods(ctx)
	for _, p := range pods {
		if p.Attached && p.Network == q.Network && p.ContainerID == q.ContainerID && p.IfName == q.IfName {
			return &api.Error{Code: api.CodeExists, Text: fmt.Sprintf("%s of container %s is attached to %s already", q.IfName, q.ContainerID, q.Network)}
		}
	}
	return err
}

// foreign refuses to work on the namespace that the plugin itself runs in, a node's for example.
func foreign(a *skel.CmdArgs) error {
	if over := strings.ToUpper(a.NetnsOverride); over == "TRUE" || over == "1" {
		return nil
	}
	own, err := ns.CheckNetNS(a.Netns)
	if err != nil {
		return err
	}
	if own {
		return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %s is the plugin's own network namespace", a.Netns), "")
	}
	return nil
}

func detach(a *skel.CmdArgs, c *conf) api.DetachRequest {
	return api.DetachRequest{ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, Network: c.Name}
}

// del takes a container away; one that is not there is a success. Without a daemon it fails, so that
// the runtime asks again: nothing else would give the address back while the namespace lives. An
// address of another plugin is given back only when no interface has it any more.
func del(a *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := decode(a.StdinData)
	if err != nil {
		return err
	}
	if err := foreign(a); err != nil {
		return err
	}
	daemon := api.NewClient(c.Socket)
	defer daemon.Close()
	d, delegates := c.delegate(a)
	if !delegates {
		return failed(daemon.Detach(ctx, detach(a, c)))
	}
	err = d.release(ctx, daemon, detach(a, c), d.del)
	if errors.Is(err, api.ErrUnreachable) && dead(a.Netns) {
		return joined(errors.Join(failed(err), d.del(ctx)))
	}
	return failed(err)
}

// dead says whether a network namespace is gone, and its interfaces with it.
func dead(netns string) bool {
	_, err := os.Stat(netns)
	return netns == "" || errors.Is(err, fs.ErrNotExist)
}

// joined makes one error of the protocol of several: the first one's code, the text of all.
func joined(err error) error {
	var first *types.Error
	if err == nil || !errors.As(err, &first) {
		return err
	}
	if text := err.Error(); text != first.Error() {
		return types.NewError(first.Code, strings.ReplaceAll(text, "\n", "; "), "")
	}
	return first
}

// check compares what was reported with what is.
func check(a *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := decode(a.StdinData)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "CHECK needs prevResult: the result of ADD", "")
	}
	expect, err := expectation(c.PrevResult, a.IfName, a.Netns)
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	daemon := api.NewClient(c.Socket)
	defer daemon.Close()
	q := api.CheckRequest{AttachRequest: api.AttachRequest{ContainerID: a.ContainerID, IfName: a.IfName, Netns: a.Netns, Network: c.Name}, Expect: expect}
	if err := daemon.Check(ctx, q); err != nil {
		return failed(err)
	}
	if d, ok := c.delegate(a); ok {
		return d.check(ctx)
	}
	return nil
}

// gc takes away what is not among the valid attachments of this network. It goes on after errors.
func gc(a *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := decode(a.StdinData)
	if err != nil {
		return err
	}
	if !c.told {
		return types.NewError(types.ErrInvalidNetworkConfig, "GC needs cni.dev/valid-attachments: without that key every pod would be taken for stale", "")
	}
	q := api.GCRequest{Network: c.Name, Valid: []api.Attachment{}}
	valid := map[api.Attachment]bool{}
	for _, v := range append(c.ValidAttachments, c.Legacy...) {
		at := api.Attachment{ContainerID: v.ContainerID, IfName: v.IfName}
		if !valid[at] {
			q.Valid = append(q.Valid, at)
		}
		valid[at] = true
	}
	daemon := api.NewClient(c.Socket)
	defer daemon.Close()
	d, delegates := c.delegate(a)
	var errs []error
	if delegates {
		pods, err := daemon.Pods(ctx)
		if err != nil {
			return failed(err)
		}
		for _, p := range pods {
			at := api.Attachment{ContainerID: p.ContainerID, IfName: p.IfName}
			if p.Network != c.Name || valid[at] {
				continue
			}
			stale := api.DetachRequest{ContainerID: p.ContainerID, IfName: p.IfName, Network: c.Name}
			if err := d.release(ctx, daemon, stale, func(ctx context.Context) error { return d.delOther(ctx, at) }); err != nil {
				errs = append(errs, failed(err))
				q.Valid = append(q.Valid, at) // the next GC is to know of it
			}
		}
	}
	errs = append(errs, failed(daemon.GC(ctx, q)))
	if delegates {
		errs = append(errs, d.gc(ctx))
	}
	return joined(errors.Join(errs...))
}

// status succeeds where ADD could be served now.
func status(a *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := decode(a.StdinData)
	if err != nil {
		return err
	}
	daemon := api.NewClient(c.Socket)
	defer daemon.Close()
	s, err := daemon.PodStatus(ctx)
	if err != nil {
		return types.NewError(codeUnavailable, err.Error(), "")
	}
	d, delegates := c.delegate(a)
	if !s.Ready && !(delegates && s.Code == api.CodeExhausted) {
		return types.NewError(codeUnavailable, "the daemon cannot attach pods: "+s.Reason, s.Code)
	}
	if delegates {
		return d.status(ctx)
	}
	return nil
}

func pluginPath() []string { return filepath.SplitList(os.Getenv("CNI_PATH")) }
