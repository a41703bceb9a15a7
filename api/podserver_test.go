package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"weft/api"
)

// podless knows one pod, "c", and refuses the rest, each with a code.
type podless struct{}

var attached = api.AttachResult{HostInterface: "weft01234567890", PodInterface: api.PodInterface{Name: "eth0", MAC: "02:00:00:00:00:01", Netns: "/n"},
	IPs:    []api.PodIP{{Address: netip.MustParsePrefix("10.0.0.2/32"), Gateway: netip.MustParseAddr("169.254.1.1")}},
	Routes: []api.PodRoute{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("169.254.1.1")}}, MTU: 1450}

func (podless) Announce(_ context.Context, q api.AnnounceRequest) error {
	if q.ContainerID != "c" {
		return &api.Error{Code: api.CodeExists, Text: "there"}
	}
	return nil
}

func (podless) Attach(_ context.Context, q api.AttachRequest) (api.AttachResult, error) {
	if q.ContainerID != "c" {
		return api.AttachResult{}, fmt.Errorf("no: %w", &api.Error{Code: api.CodeExhausted, Text: "used up"})
	}
	return attached, nil
}
func (podless) Detach(_ context.Context, q api.DetachRequest) error {
	if q.ContainerID != "c" {
		return errors.New("the kernel says no")
	}
	return nil
}
func (podless) Check(_ context.Context, q api.CheckRequest) error {
	if !reflect.DeepEqual(q.Expect, attached) || q.ContainerID != "c" {
		return &api.Error{Code: api.CodeMismatch, Text: "other"}
	}
	return nil
}
func (podless) GC(_ context.Context, q api.GCRequest) error {
	if len(q.Valid) != 1 || q.Valid[0] != (api.Attachment{ContainerID: "c", IfName: "eth0"}) {
		return &api.Error{Code: api.CodeInvalid, Text: "other"}
	}
	return nil
}
func (podless) Pods() ([]api.Pod, error) { return nil, nil }
func (podless) PodStatus() api.PodStatus {
	return api.PodStatus{Code: api.CodeUnavailable, Reason: "not yet"}
}

func TestPods(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path)
	c := api.NewClient(path)
	defer c.Close()
	ctx := t.Context()
	code := func(err error) string {
		var e *api.Error
		if !errors.As(err, &e) {
			return fmt.Sprint(err)
		}
		return e.Code
	}
	if a, err := c.Attach(ctx, api.AttachRequest{ContainerID: "c"}); err != nil || !reflect.DeepEqual(a, attached) {
		t.Errorf("attach: %+v, %v", a, err)
	}
	if err := c.GC(ctx, api.GCRequest{Network: "weft"}); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "valid is missing") {
		t.Errorf("gc without a list: %v", err)
	}
	if err := c.Announce(ctx, api.AnnounceRequest{ContainerID: "c"}); err != nil {
		t.Error(err)
	}
	if err := c.Announce(ctx, api.AnnounceRequest{}); code(err) != api.CodeExists {
		t.Errorf("announce what is there: %v", err)
	}
	if _, err := c.Attach(ctx, api.AttachRequest{}); code(err) != api.CodeExhausted || err.Error() != "no: used up" {
		t.Errorf("attach: %v", err)
	}
	if err := c.Detach(ctx, api.DetachRequest{ContainerID: "c"}); err != nil {
		t.Errorf("detach: %v", err)
	}
	if err := c.Detach(ctx, api.DetachRequest{}); code(err) != api.CodeFailed {
		t.Errorf("detach: %v", err)
	}
	if err := c.Check(ctx, api.CheckRequest{AttachRequest: api.AttachRequest{ContainerID: "c"}, Expect: attached}); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := c.Check(ctx, api.CheckRequest{}); code(err) != api.CodeMismatch {
		t.Errorf("check: %v", err)
	}
	if err := c.GC(ctx, api.GCRequest{Network: "n", Valid: []api.Attachment{{ContainerID: "c", IfName: "eth0"}}}); err != nil {
		t.Errorf("gc: %v", err)
	}
	if p, err := c.Pods(ctx); err != nil || p == nil {
		t.Errorf("pods: %v, %v", p, err)
	}
	if s, err := c.PodStatus(ctx); err != nil || s != (podless{}).PodStatus() {
		t.Errorf("status: %+v, %v", s, err)
	}
}
