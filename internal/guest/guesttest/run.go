package guesttest

import (
	"context"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/session"
)

// Run implements wire.GuestService.
func (g *Guest) Run(ctx context.Context, r *wire.RunRequest) (*wire.RunResponse, error) {
	return wire.RunParts(ctx, g, r), nil
}

// Settle implements wire.GuestService: there is nothing to give back.
func (g *Guest) Settle(ctx context.Context, _ *wire.SettleRequest) (*wire.SettleResponse, error) {
	session.End(ctx)
	return &wire.SettleResponse{}, nil
}
