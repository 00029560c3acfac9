package guestinit

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/device"
	"github.com/hyper-run/hyper/internal/guestinit/session"
)

// Settle implements wire.GuestService.
func (s *Service) Settle(ctx context.Context, r *wire.SettleRequest) (*wire.SettleResponse, error) {
	if err := s.prepare(ctx, r.Spec); err != nil {
		return nil, status.Errorf(codes.Internal, "settle: %v", err)
	}
	s.settled.Store(true)
	s.cloned.Store(true)
	s.rest.Stop()
	giveBack()
	debug.SetGCPercent(-1) // until a clone has started its process and rests
	for _, w := range []struct{ file, value string }{{"drop_caches", "3"}, {"compact_memory", "1"}} {
		if err := os.WriteFile("/proc/sys/vm/"+w.file, []byte(w.value), 0); err != nil {
			return nil, status.Errorf(codes.Internal, "settle: %v", err)
		}
	}
	if err := reported(ctx); err != nil {
		return nil, status.Errorf(codes.Internal, "settle: %v", err)
	}
	session.End(ctx) // or each clone would have to, when its host comes
	return &wire.SettleResponse{}, nil
}

// prepare makes and learns ahead of time what a container needs, and what an
// ordinary one does.
func (s *Service) prepare(ctx context.Context, ordinary []byte) error {
	var spec *specs.Spec
	if len(ordinary) > 0 {
		spec = new(specs.Spec)
		if err := json.Unmarshal(ordinary, spec); err != nil {
			return fmt.Errorf("read spec: %w", err)
		}
		// Twice: some things are made when something is done again.
		for range 2 {
			if err := s.setStages(1, spec); err != nil {
				return err
			}
			if err := s.rehearse(ctx, *spec); err != nil {
				return err
			}
		}
	}
	if err := s.setStages(spares, spec); err != nil {
		return err
	}
	disks := device.Disks(nil)
	s.mu.Lock()
	s.disks = disks
	s.mu.Unlock()
	s.configuring.Lock()
	defer s.configuring.Unlock()
	return s.machine.links.Settle()
}

// reportDelay is more than what the kernel waits before it reports free pages
// to the host (PAGE_REPORTING_DELAY in mm/page_reporting.c).
const reportDelay = 2200 * time.Millisecond

// reported returns when the host knows of all free memory: the kernel tells
// it in rounds, and the device's interrupts are all that shows them. A VM
// saved before would leave the telling to each of its clones.
func reported(ctx context.Context) error {
	devices, err := filepath.Glob("/sys/bus/virtio/drivers/virtio_balloon/virtio*")
	if err != nil || len(devices) == 0 {
		return err
	}
	for last := ""; ; {
		b, err := os.ReadFile("/proc/interrupts")
		if err != nil {
			return err
		}
		var now string
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, " "+filepath.Base(devices[0])) {
				now += line
			}
		}
		if now == last {
			return nil
		}
		last = now
		select {
		case <-time.After(reportDelay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
