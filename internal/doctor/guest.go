package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hyper-run/hyper/internal/vmm"
)

// Thresholds below which pods soon fail, and below which it gets tight.
const (
	failDisk   = 1 << 30
	warnDisk   = 10 << 30
	failMemory = 256 << 20
	warnMemory = 1 << 30
)

func (o *Options) vmm(ctx context.Context) []Result {
	if o.VMM == nil {
		return nil
	}
	r := Result{Name: "qemu", Status: OK}
	caps, err := o.VMM(ctx)
	if err != nil {
		r.Status, r.Detail, r.Fix = Fail, err.Error(), "apt-get install qemu-system-x86"
	} else {
		r.Detail = "version " + caps.Version
	}
	return []Result{r}
}

// accelerator says nothing when there is no VMM: that is what to mend first.
func (o *Options) accelerator(ctx context.Context) []Result {
	if o.VMM == nil {
		return nil
	}
	caps, err := o.VMM(ctx)
	if err != nil {
		return nil
	}
	r := Result{Name: "accelerator", Status: OK, Detail: string(caps.Accel)}
	if caps.AccelWhy != "" {
		r.Detail += ": " + caps.AccelWhy
	}
	if caps.Accel != vmm.AccelKVM {
		r.Status, r.Fix = Warn, o.kvmFix()
	}
	return []Result{r}
}

func (o *Options) kvmFix() string {
	cpu, _ := o.read("/proc/cpuinfo")
	module := ""
	for _, flag := range strings.Fields(cpu) {
		switch flag {
		case "vmx":
			module = "kvm_intel"
		case "svm":
			module = "kvm_amd"
		}
	}
	switch {
	case module != "" && !o.exists("/dev/kvm"):
		return "modprobe " + module
	case module == "":
		return "turn on virtualization (VT-x, AMD-V) in the firmware, or nested virtualization where this machine is itself virtual; pods run without, slower"
	}
	return ""
}

func (o *Options) kernel(context.Context) []Result {
	if o.Kernel == nil {
		return nil
	}
	name, err := o.Kernel()
	if err != nil {
		return []Result{{"guest kernel", Fail, err.Error(), "make kernel, or at once make deps (Debian's kernel), in the source of Hyper"}}
	}
	return []Result{{Name: "guest kernel", Status: OK, Detail: name}}
}

func (o *Options) hyperstart(context.Context) []Result {
	if o.Hyperstart == nil {
		return nil
	}
	path, err := o.Hyperstart()
	if err == nil {
		var fi os.FileInfo
		if fi, err = os.Stat(path); err == nil && (fi.IsDir() || fi.Size() == 0) {
			err = fmt.Errorf("%s is no program", path)
		}
	}
	if err != nil {
		return []Result{{"hyperstart", Fail, err.Error(), "make build"}}
	}
	return []Result{{Name: "hyperstart", Status: OK, Detail: path}}
}

// tools are the programs of the host that hyperd runs, besides QEMU.
func (o *Options) tools(context.Context) []Result {
	mke2fs := Result{Name: "mke2fs", Status: OK}
	if path, err := o.LookPath("mke2fs"); err == nil {
		mke2fs.Detail = path
	} else {
		mke2fs.Status, mke2fs.Detail = Fail, "not found in PATH; it formats the disks of containers"
		mke2fs.Fix = "apt-get install e2fsprogs"
		if o.exists("/usr/sbin/mke2fs") {
			mke2fs.Fix = "export PATH=$PATH:/usr/sbin"
		}
	}
	return []Result{mke2fs, o.virtiofsd()}
}

func (o *Options) virtiofsd() Result {
	if path, err := o.LookPath("virtiofsd"); err == nil {
		return Result{Name: "virtiofsd", Status: OK, Detail: path}
	}
	// It is not meant to be run by hand and sits outside of PATH.
	for _, path := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"} {
		if o.exists(path) {
			return Result{Name: "virtiofsd", Status: OK, Detail: path}
		}
	}
	r := Result{"virtiofsd", Warn, "not found; needed to mount host directories", "apt-get install virtiofsd"}
	if release, _ := o.read("/etc/os-release"); strings.Contains(release, `VERSION_ID="12"`) {
		r.Fix = "apt-get install qemu-system-common"
	}
	return r
}

func (o *Options) memory(context.Context) []Result {
	r := Result{Name: "memory", Status: OK, Fix: "stop what is not needed, or give containers less (hyper run -m 128m)"}
	free, err := o.memAvailable()
	switch {
	case err != nil:
		r.Status, r.Detail, r.Fix = Warn, err.Error(), "mount -t proc proc /proc"
	case free < failMemory:
		r.Status, r.Detail = Fail, size(free)+" available, less than one pod takes"
	case free < warnMemory:
		r.Status, r.Detail = Warn, size(free)+" available, enough for one or two pods"
	default:
		r.Detail, r.Fix = size(free)+" available", ""
	}
	return []Result{r}
}

func (o *Options) memAvailable() (uint64, error) {
	info, err := o.read("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(info) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseUint(fields[1], 10, 54)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

func (o *Options) disk(context.Context) []Result {
	dir := o.StateDir
	for !o.exists(dir) && dir != "/" && dir != "." {
		dir = filepath.Dir(dir) // hyperd makes it
	}
	r := Result{Name: "disk", Status: OK, Fix: "hyper system prune, or hyperd --root on a larger file system"}
	free, err := o.DiskFree(o.path(dir))
	switch {
	case err != nil:
		r.Status, r.Detail = Fail, err.Error()
	case free < failDisk:
		r.Status, r.Detail = Fail, fmt.Sprintf("%s free in %s, want at least %s", size(free), o.StateDir, size(failDisk))
	case free < warnDisk:
		r.Status, r.Detail = Warn, fmt.Sprintf("%s free in %s, images and disks soon need %s", size(free), o.StateDir, size(warnDisk))
	default:
		r.Detail, r.Fix = fmt.Sprintf("%s free in %s", size(free), o.StateDir), ""
	}
	return []Result{r}
}

// size is for people: three digits are enough.
func size(n uint64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
