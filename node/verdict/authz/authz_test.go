package authz

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"weft/node/verdict"
	"weft/policy"
)

// dial serves and returns the published client.
func dial(t *testing.T, o verdict.Options) auth.AuthorizationClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := verdict.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	o.Log = zap.NewNop()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, o) }()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return auth.NewAuthorizationClient(conn)
}

func peerAt(address string, port uint32, p core.SocketAddress_Protocol) *auth.AttributeContext_Peer {
	return &auth.AttributeContext_Peer{Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Protocol: p, Address: address,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}}
}

// TestCheck: what Envoy asks by its published protocol is answered as the policies have it, about the caller's own connections.
func TestCheck(t *testing.T) {
	pod := verdict.Pod{Namespace: "shop", Name: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	client := dial(t, verdict.Options{PodOf: func(uint64) (verdict.Pod, bool) { return pod, true }, Allowed: func(q policy.Traffic) (bool, error) {
		return q.Protocol == policy.TCP && q.Port == 80 && q.Src != netip.MustParseAddr("10.0.0.9"), nil
	}})
	for _, c := range []struct {
		src, dst string
		port     uint32
		protocol core.SocketAddress_Protocol
		call     codes.Code // of the call
		verdict  codes.Code
	}{
		{"10.0.0.2", "10.0.0.1", 80, core.SocketAddress_TCP, codes.OK, codes.OK},
		{"fd00::2", "fd00::1", 80, core.SocketAddress_TCP, codes.OK, codes.OK},
		{"10.0.0.1", "10.0.0.2", 80, core.SocketAddress_TCP, codes.OK, codes.OK},
		{"10.0.0.9", "10.0.0.1", 80, core.SocketAddress_TCP, codes.OK, codes.PermissionDenied},
		{"10.0.0.2", "10.0.0.1", 81, core.SocketAddress_TCP, codes.OK, codes.PermissionDenied},
		{"10.0.0.2", "10.0.0.1", 80, core.SocketAddress_UDP, codes.OK, codes.PermissionDenied},
		{"10.0.0.2", "10.0.0.3", 80, core.SocketAddress_TCP, codes.PermissionDenied, 0},
		{"10.0.0.2", "fd00::1", 80, core.SocketAddress_TCP, codes.InvalidArgument, 0},
		{"nobody", "10.0.0.1", 80, core.SocketAddress_TCP, codes.InvalidArgument, 0},
		{"10.0.0.2", "10.0.0.1", 80000, core.SocketAddress_TCP, codes.InvalidArgument, 0},
	} {
		r, err := client.Check(t.Context(), &auth.CheckRequest{Attributes: &auth.AttributeContext{Source: peerAt(c.src, 4000, c.protocol), Destination: peerAt(c.dst, c.port, c.protocol)}})
		if status.Code(err) != c.call || err == nil && codes.Code(r.GetStatus().GetCode()) != c.verdict {
			t.Errorf("%+v: %v, %v", c, r, err)
		}
		if denied := r.GetDeniedResponse(); err == nil && (denied != nil) != (c.verdict != codes.OK) || denied != nil && denied.GetStatus().GetCode() != 403 {
			t.Errorf("%+v: %v", c, r)
		}
	}
	if _, err := client.Check(t.Context(), &auth.CheckRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

// TestNoPod: who is in no pod of this node is told nothing.
func TestNoPod(t *testing.T) {
	client := dial(t, verdict.Options{PodOf: func(uint64) (verdict.Pod, bool) { return verdict.Pod{}, false }, Allowed: func(policy.Traffic) (bool, error) { return true, nil }})
	r := &auth.CheckRequest{Attributes: &auth.AttributeContext{Source: peerAt("10.0.0.2", 1, 0), Destination: peerAt("10.0.0.1", 80, 0)}}
	if answer, err := client.Check(t.Context(), r); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v, %v", answer, err)
	}
}
