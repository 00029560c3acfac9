package guestinit

import (
	"context"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Shutdown implements wire.GuestService.
func (s *Service) Shutdown(ctx context.Context, _ *wire.ShutdownRequest) (*wire.ShutdownResponse, error) {
	for _, id := range s.ids() {
		s.DeleteContainer(ctx, &wire.DeleteContainerRequest{Id: id})
	}
	s.removeVolumes()
	syscall.Sync()
	// The answer goes out while the power still is on.
	time.AfterFunc(20*time.Millisecond, powerOff)
	return &wire.ShutdownResponse{}, nil
}

// powerOff stops the VM. With ACPI that is a power-off; without, as on a
// microvm, the kernel would halt and QEMU go on, so the machine resets itself,
// by a triple fault: the kernel's other ways try an absent keyboard controller
// for three seconds first.
func powerOff() {
	if _, err := os.Stat("/sys/firmware/acpi/tables"); err == nil {
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	os.WriteFile("/sys/kernel/reboot/type", []byte("triple"), 0)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
