package guesttest

import (
	"context"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Run implements wire.GuestService.
func (g *Guest) Run(ctx context.Context, r *wire.RunRequest) (*wire.RunResponse, error) {
	return wire.RunParts(ctx, g, r), nil
}

// Settle implements wire.GuestService: there is nothing to give back.
func (g *Guest) Settle(context.Context, *wire.SettleRequest) (*wire.SettleResponse, error) {
	return &wire.SettleResponse{}, nil
}
