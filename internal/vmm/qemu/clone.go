package qemu

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// How a migration ends (MigrationStatus in qapi/migration.json).
const (
	migrationCompleted = "completed"
	migrationFailed    = "failed"
	migrationCancelled = "cancelled"
)

// load has QEMU load the state it inherited as fd, and returns when it has
// begun to: the guest runs on as soon as that is done. A QEMU that cannot
// load it says why and exits.
func (v *vm) load(ctx context.Context, fd int) error {
	// All at once: QEMU sees the first when it has come up.
	calls := []*qmp.Call{
		v.qmp.SetMigrationCapabilities(ctx, qmp.CapIgnoreShared, qmp.CapEvents),
		v.qmp.MigrateIncoming(ctx, "fd:"+strconv.Itoa(fd)),
	}
	if err := v.qmp.Ready(ctx); err != nil {
		return err
	}
	return qmp.WaitAll(ctx, calls...)
}

// migration is called for each step of a migration, in or out. It reports
// whether a state was loaded whose guest does not run: there was no RESUME
// before the end.
func (v *vm) migration(status string) (stuck bool) {
	switch status {
	case migrationCompleted, migrationFailed, migrationCancelled:
	default:
		return false
	}
	if v.saveable {
		select {
		case v.migrated <- status:
		default:
		}
		return false
	}
	return status == migrationCompleted && !v.resumed.Load()
}

// endUnlessPaused ends a clone that was loaded and does not run, because a
// disk could not be had (another VM writes it): QEMU says so and stays.
func (v *vm) endUnlessPaused(ctx context.Context) {
	v.mu.Lock()
	paused := v.paused
	v.mu.Unlock()
	if paused {
		return
	}
	if s, err := v.qmp.QueryStatus(ctx); err == nil && s == qmp.StatusPaused {
		v.end(vmm.Exit{Reason: vmm.ExitCrashed, Detail: "qemu: the saved guest does not run on: " + vmm.LastLines([]byte(readLog(v.handle.Dir)), 1)})
	}
}

// Save implements vmm.Saver.
func (v *vm) Save(ctx context.Context, state *os.File) error {
	if !v.saveable {
		return v.error("save", fmt.Errorf("its memory is not a file: %w", errdefs.ErrFailedPrecondition))
	}
	return v.command("save", func() error { return v.save(ctx, state) })
}

func (v *vm) save(ctx context.Context, state *os.File) error {
	const name = "state"
	calls := []*qmp.Call{
		v.qmp.Send(ctx, "stop", nil, nil),
		v.qmp.SetMigrationCapabilities(ctx, qmp.CapIgnoreShared, qmp.CapEvents),
		v.qmp.GetFD(ctx, state, name),
		v.qmp.Migrate(ctx, "fd:"+name),
	}
	if err := qmp.WaitAll(ctx, calls...); err != nil {
		return err
	}
	select {
	case status := <-v.migrated:
		if status == migrationCompleted {
			return nil
		}
		return fmt.Errorf("QEMU %s: %s", status, v.qmp.MigrationError(ctx))
	case <-v.qmp.Done():
		return v.qmp.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
