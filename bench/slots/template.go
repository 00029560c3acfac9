package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// memoryName is how the guest's memory is called among a process's mappings.
const memoryName = "slots-memory"

// A lab is where VMs are made, a directory that is removed in the end.
type lab struct {
	shape
	dir            string
	kernel, initrd *os.File
	empty          *os.File // what is in a pmem slot without an image
	vms            int      // how many there were
}

func newLab(ctx context.Context, s shape) (_ *lab, err error) {
	dir, err := os.MkdirTemp("", "hyper-slots-") // short: sockets are in it
	if err != nil {
		return nil, err
	}
	l := &lab{shape: s, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	k, err := boot.DefaultKernels().Select(boot.HyperKernel)
	if err != nil {
		return nil, err
	}
	if l.kernel, err = os.Open(k.Path); err != nil {
		return nil, err
	}
	if l.initrd, err = makeInitrd(ctx, dir); err != nil {
		return nil, err
	}
	if l.empty, err = os.Create(filepath.Join(dir, "empty")); err != nil {
		return nil, err
	}
	return l, l.empty.Truncate(int64(s.slotMiB) << 20)
}

func (l *lab) close() error {
	for _, f := range []*os.File{l.kernel, l.initrd, l.empty} {
		if f != nil {
			f.Close()
		}
	}
	return os.RemoveAll(l.dir)
}

// makeInitrd builds the guest's init and packs it.
func makeInitrd(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, "init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/hyper-run/hyper/bench/slots/guest")
	build.WaitDelay = time.Second // for compilers that go started
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest's init: %w\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, "initrd"))
	if err != nil {
		return nil, err
	}
	return f, boot.WriteCPIO(f, []boot.File{
		{Name: "dev", Mode: unix.S_IFDIR | 0o755},
		{Name: "dev/console", Mode: unix.S_IFCHR | 0o600, Major: 5, Minor: 1},
		{Name: "init", Mode: unix.S_IFREG | 0o755, Size: int64(len(program)), Data: bytes.NewReader(program)},
	})
}

// nextDir is the directory of the next VM.
func (l *lab) nextDir() string {
	l.vms++
	return filepath.Join(l.dir, strconv.Itoa(l.vms))
}

// A template is a VM that waits for an image, saved as two memfds.
type template struct {
	road
	shape
	lab           *lab
	memory, state *os.File
	boot          time.Duration // exec of QEMU to all slots found, cold
	used          int64         // bytes of memory that the guest has touched
}

func (t *template) close() {
	t.memory.Close()
	t.state.Close()
}

// makeTemplate boots a VM with empty slots and saves it.
func (l *lab) makeTemplate(ctx context.Context, r road, s shape) (_ *template, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	t := &template{road: r, shape: s, lab: l}
	if t.memory, err = memfd(memoryName); err != nil {
		return nil, err
	}
	if t.state, err = memfd("slots-state"); err != nil {
		t.memory.Close()
		return nil, err
	}
	if err = t.fill(ctx); err != nil {
		t.close()
		return nil, fmt.Errorf("make template %v: %w", r, err)
	}
	return t, nil
}

func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (t *template) fill(ctx context.Context) error {
	if err := t.memory.Truncate(int64(t.memMiB) << 20); err != nil {
		return err
	}
	var in inheritance
	s := spec{
		road: t.road, shape: t.shape,
		kernelFD: in.add(t.lab.kernel), initrdFD: in.add(t.lab.initrd),
		memoryFD: in.add(t.memory), emptyFD: in.add(t.lab.empty),
	}
	v, err := launch(ctx, t.lab.nextDir(), s, in)
	if err != nil {
		return err
	}
	defer v.end()
	if _, err := v.ask(ctx, "slots %s %d", t.kind, t.slots); err != nil {
		return v.explain(err)
	}
	t.boot = time.Since(v.started)
	if err := pause(ctx, time.Second); err != nil { // what the kernel still does
		return err
	}
	if err := v.save(ctx, t.state); err != nil {
		return v.explain(err)
	}
	v.end()
	var stat unix.Stat_t
	if err := unix.Fstat(int(t.memory.Fd()), &stat); err != nil {
		return err
	}
	t.used = stat.Blocks * 512
	for _, f := range []*os.File{t.memory, t.state} {
		const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			return fmt.Errorf("seal %s: %w", f.Name(), err)
		}
	}
	return nil
}

func (v *vm) save(ctx context.Context, state *os.File) error {
	err := qmp.WaitAll(ctx,
		v.qmp.Send(ctx, "stop", nil, nil),
		v.qmp.SetMigrationCapabilities(ctx, qmp.CapIgnoreShared, qmp.CapEvents),
		v.qmp.GetFD(ctx, state, "state"),
		v.qmp.Migrate(ctx, "fd:state"))
	if err != nil {
		return err
	}
	return v.migrated(ctx)
}

// steps of a clone, from the exec of QEMU.
type steps struct {
	qmp    time.Duration // QEMU takes commands
	loaded time.Duration // the state is loaded, the guest runs
	answer time.Duration // the guest has mounted the image and read a small file
}

// clone starts a clone with the image in its first slot. The caller ends it.
func (t *template) clone(ctx context.Context, img *image) (_ *vm, took steps, err error) {
	state, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", t.state.Fd())) // has an offset of its own
	if err != nil {
		return nil, took, err
	}
	defer state.Close()
	var in inheritance
	stateFD := in.add(state)
	v, err := launch(ctx, t.lab.nextDir(), spec{
		road: t.road, shape: t.shape, clone: true,
		memoryFD: in.add(t.memory), emptyFD: in.add(t.lab.empty), imageFD: in.add(img.file),
	}, in)
	if err != nil {
		return nil, took, err
	}
	took.qmp = time.Since(v.started)
	err = qmp.WaitAll(ctx,
		v.qmp.SetMigrationCapabilities(ctx, qmp.CapIgnoreShared, qmp.CapEvents),
		v.qmp.MigrateIncoming(ctx, "fd:"+strconv.Itoa(stateFD)))
	if err == nil {
		err = v.migrated(ctx)
	}
	took.loaded = time.Since(v.started)
	if err == nil {
		_, err = v.ask(ctx, "mount 0")
	}
	took.answer = time.Since(v.started)
	if err != nil {
		err = v.explain(err)
		v.end()
		return nil, took, err
	}
	return v, took, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
