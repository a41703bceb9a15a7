// Package authz answers Envoy's external authorization (envoy.service.auth.v3.Authorization, ext_authz over gRPC) by network policies, so that a
// service mesh asks the same policies as the kernel does: https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/external_auth.proto.
// It is the verdict socket in another language: who asks is known from the socket, and answered about its own pod's connections.
package authz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	envoy "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	grpcstatus "google.golang.org/grpc/status"

	"weft/node/verdict"
	"weft/policy"
)

// Most bytes of a request: Envoy may be told to send bodies along, which nobody here reads.
const maxRequest = 64 << 10

// How long a connection may say nothing, when it begins and between two questions: Envoy makes another one then.
const helloTimeout, idleTimeout = 5 * time.Second, 5 * time.Minute

// Serve answers on l until ctx ends, then closes l.
func Serve(ctx context.Context, l net.Listener, o verdict.Options) error {
	s := grpc.NewServer(grpc.Creds(callers{}), grpc.MaxRecvMsgSize(maxRequest), grpc.MaxConcurrentStreams(64), grpc.ConnectionTimeout(helloTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout}))
	auth.RegisterAuthorizationServer(s, &server{o: &o})
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(verdict.Callers(l, &o)); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("authz: %w", err)
	}
	return nil
}

type server struct {
	auth.UnimplementedAuthorizationServer
	o *verdict.Options
}

// Check answers about the connection that a request came by. What HTTP says is of no meaning to network policy.
func (s *server) Check(ctx context.Context, r *auth.CheckRequest) (*auth.CheckResponse, error) {
	p, _ := peer.FromContext(ctx)
	caller, ok := p.AuthInfo.(known)
	if !ok {
		return nil, grpcstatus.Error(codes.Unauthenticated, "who calls is not known")
	}
	if caller.Err != nil {
		return nil, grpcstatus.Error(codes.PermissionDenied, caller.Err.Error())
	}
	t, err := traffic(r)
	if err != nil {
		return nil, grpcstatus.Error(codes.InvalidArgument, err.Error())
	}
	allowed, err := s.o.Judge(caller.Pod, t)
	switch {
	case errors.Is(err, verdict.ErrForeign):
		return nil, grpcstatus.Error(codes.PermissionDenied, err.Error())
	case err != nil:
		return nil, grpcstatus.Error(codes.Unavailable, err.Error())
	case allowed:
		return &auth.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}, HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{}}}, nil
	}
	return &auth.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied), Message: "denied by network policy"},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
			Status: &envoy.HttpStatus{Code: envoy.StatusCode_Forbidden}, Body: "denied by network policy\n"}}}, nil
}

// traffic reads the connection's ends: source and destination of the attributes.
func traffic(r *auth.CheckRequest) (t policy.Traffic, err error) {
	src, _, protocol, err := end(r.GetAttributes().GetSource())
	if err != nil {
		return t, fmt.Errorf("source: %w", err)
	}
	dst, port, to, err := end(r.GetAttributes().GetDestination())
	if err != nil {
		return t, fmt.Errorf("destination: %w", err)
	}
	if src.Is4() != dst.Is4() || protocol != to {
		return t, errors.New("source and destination are of two families or protocols")
	}
	t = policy.Traffic{Src: src, Dst: dst, Protocol: policy.TCP, Port: port}
	if to == core.SocketAddress_UDP {
		t.Protocol = policy.UDP
	}
	return t, nil
}

func end(p *auth.AttributeContext_Peer) (a netip.Addr, port uint16, protocol core.SocketAddress_Protocol, err error) {
	s := p.GetAddress().GetSocketAddress()
	a, err = netip.ParseAddr(s.GetAddress())
	switch {
	case s == nil:
		return a, 0, 0, errors.New("is no socket address")
	case err != nil:
		return a, 0, 0, fmt.Errorf("%q is no address", strings.ToValidUTF8(s.GetAddress(), ""))
	case s.GetPortValue() > 65535:
		return a, 0, 0, fmt.Errorf("%d is no port", s.GetPortValue())
	}
	return a.Unmap().WithZone(""), uint16(s.GetPortValue()), s.GetProtocol(), nil
}

// callers hand on who is at the other end of a connection, which its listener has found out.
type callers struct{}

type known struct{ *verdict.Known }

func (known) AuthType() string { return "SO_PEERCRED" }

func (callers) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, known{conn.(*verdict.Known)}, nil
}

func (callers) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("authz: these are a server's credentials")
}

func (callers) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "SO_PEERCRED"}
}

func (c callers) Clone() credentials.TransportCredentials { return c }

func (callers) OverrideServerName(string) error { return nil }
