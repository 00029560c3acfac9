package probe

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// check asks the server for its health.
func (g *GRPCCheck) check(ctx context.Context, t Target) error {
	d := newDials(ctx, t)
	defer d.close()
	dial := func(_ context.Context, addr string) (net.Conn, error) { return d.dial(addr) }
	addr := address("", g.Port)
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(UserAgent), grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxBody)))
	if err != nil {
		return fmt.Errorf("make a gRPC client for %s: %w", addr, err)
	}
	defer cc.Close()
	resp, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: g.Service})
	switch code := status.Code(err); {
	case code == codes.Unavailable && d.failed() != nil:
		return fmt.Errorf("connect to %s: %w", addr, d.failed())
	case code == codes.Unimplemented:
		return fmt.Errorf("check %s: the server has no grpc.health.v1: %s", addr, status.Convert(err).Message())
	case code == codes.NotFound:
		return fmt.Errorf("check %s: the server knows no service %q", addr, g.Service)
	case code == codes.DeadlineExceeded: // perhaps the server was the first to see it
		return fmt.Errorf("check %s: %w", addr, context.DeadlineExceeded)
	case err != nil:
		return fmt.Errorf("check %s: %w", addr, err)
	case resp.Status != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("check %s: it is %s", addr, resp.Status)
	}
	return nil
}
