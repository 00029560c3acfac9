package guestinit

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Run implements wire.GuestService.
func (s *Service) Run(ctx context.Context, r *wire.RunRequest) (*wire.RunResponse, error) {
	if r.Configure == nil || r.Create == nil || r.Start == nil {
		return nil, status.Error(codes.InvalidArgument, "run: a part is missing")
	}
	s.rest.Stop() // giving memory back can wait until this is done
	return wire.RunParts(ctx, s, r), nil
}
