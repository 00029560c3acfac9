// Package lab proves what needs KVM on hosts that have none: it boots the host's own root file system as a
// VM in which QEMU emulates a CPU with AMD's virtualization, and runs tests in there (README.md).
//
// It is skipped unless HYPER_LAB is set: to 1 (make lab) or to short, which leaves out what takes long and
// proves little more. It needs root, and its kernel (build-kernel).
package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
)

const (
	// limit is for the VM's whole life, shortLimit with HYPER_LAB=short.
	limit, shortLimit = 12 * time.Minute, 6 * time.Minute
	// The lab gives a sign of life every 5 seconds of its own time.
	frozen = 90 * time.Second
	// host is where the lab has the host's files, also those it mounts something over.
	host = "/run/host"
)

var errFrozen = fmt.Errorf("the emulated machine gave no sign of life for %v", frozen)

func TestLab(t *testing.T) {
	if os.Getenv("HYPER_LAB") == "" {
		t.Skip("HYPER_LAB is not set (make lab)")
	}
	kernel := filepath.Join(cache(t), "lab", "kernel", "hyperkernel", "kernel")
	if _, err := os.Stat(kernel); err != nil {
		t.Fatalf("%v (test/lab/build-kernel makes it)", err)
	}
	dir := t.TempDir()
	start := time.Now()
	build(t, dir)
	t.Logf("built in %v", time.Since(start).Round(time.Second))
	out, err := run(t, dir, kernel)
	if errors.Is(err, errFrozen) {
		// Not a fault of what is tested: nothing in the lab ran any more, not even its clock.
		t.Logf("%v, once more", err)
		out, err = run(t, dir, kernel)
	}
	if err != nil {
		t.Error(err)
	}
	report(t, out)
}

func short() bool { return os.Getenv("HYPER_LAB") == "short" }

// cache is where kernels and images are.
func cache(t *testing.T) string {
	if dir := os.Getenv("HYPER_CACHE"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(home, ".cache", "hyper")
}

// build puts into dir what the lab runs.
func build(t *testing.T, dir string) {
	goTool(t, "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "./cmd/...", "./test/lab/inside/vsockguest")
	goTool(t, "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/testguest", "./internal/vmm/vmmtest/testguest/init")
	goTool(t, "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/inside.test", "./test/lab/inside")
	image, err := exec.Command("../images/make", "busybox").Output()
	if err != nil {
		t.Fatalf("test/images/make busybox: %v", err)
	}
	kernel := realpath(t, filepath.Join(cache(t), "kernel", "hyperkernel", "kernel"))
	env := fmt.Sprintf("HYPER_TEST_KERNEL=%q HYPER_LAB_IMAGE=%q HYPER_CACHE=%q FLAGS=-test.short=%v\n",
		host+kernel, host+strings.TrimSpace(string(image)), host+cache(t), short())
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte(env), 0o600); err != nil {
		t.Fatal(err)
	}
}

func goTool(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func realpath(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run boots the lab and returns what it printed.
func run(t *testing.T, dir, kernel string) (lines []string, err error) {
	bound := limit
	if short() {
		bound = shortLimit
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), bound, fmt.Errorf("the lab took longer than %v", bound))
	defer cancel()
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	serial := filepath.Join(dir, "serial")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv(t, dir, kernel, serial)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	// It ends with this test, however that ends; the kernel's rule is about the thread that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	life := time.AfterFunc(frozen, func() { kill(errFrozen) })
	defer life.Stop()
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		life.Reset(frozen)
		if line := strings.TrimRight(in.Text(), "\r"); line != "LAB alive" {
			fmt.Fprintln(t.Output(), line)
			lines = append(lines, line)
		}
	}
	err = errors.Join(in.Err(), cmd.Wait(), context.Cause(ctx))
	t.Logf("the lab ran for %v", time.Since(start).Round(time.Second))
	if err != nil {
		printed, _ := os.ReadFile(serial)
		return lines, fmt.Errorf("%w\n%s\n%s", err, &stderr, vmm.LastLines(printed, 40))
	}
	return lines, nil
}

// argv is QEMU's command line.
func argv(t *testing.T, dir, kernel, serial string) []string {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"-name", "hyper-lab", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "microvm,acpi=on,isa-serial=on", "-global", "virtio-mmio.force-legacy=off",
		"-accel", "tcg,tb-size=1024", "-cpu", "max,+svm,+npt,la57=off", "-smp", "1", "-m", "3G",
		"-kernel", kernel, "-append", cmdline(filepath.Join(realpath(t, here), "init"), dir),
		"-serial", "file:" + serial,
		"-device", "virtio-serial-device", "-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out",
		"-device", "virtio-rng-device",
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-device,fsdev=root,mount_tag=rootfs",
	}
}

// cmdline is that of the lab's kernel. Under TCG a guest's TSC is the host's.
func cmdline(init, dir string) string {
	line := "console=ttyS0 panic=-1 noreplace-smp no_timer_check root=rootfs rootfstype=9p" +
		" rootflags=trans=virtio,version=9p2000.L,cache=loose,msize=512000 ro init=" + init + " LAB=" + dir
	info, _ := os.ReadFile("/proc/cpuinfo")
	if m := regexp.MustCompile(`(?m)^cpu MHz\s*: (\d+)\.(\d{3})`).FindSubmatch(info); m != nil {
		line += " tsc=reliable tsc_early_khz=" + string(m[1]) + string(m[2])
	}
	return line
}

// testLine is how a test in the lab says how it ended.
var testLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) `)

// report makes a subtest of each test that ran in the lab.
func report(t *testing.T, lines []string) {
	for _, line := range lines {
		m := testLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		t.Run(m[2], func(t *testing.T) {
			switch m[1] {
			case "FAIL":
				t.Error("failed in the lab, see its output above")
			case "SKIP":
				t.Skip("skipped in the lab")
			}
		})
	}
	if !slices.Contains(lines, "LAB end 0") {
		t.Error("the tests in the lab did not end well")
	}
}

// TestProbeOutside: on a host without virtualization the driver must not be misled by a /dev/kvm.
func TestProbeOutside(t *testing.T) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^flags.*\b(vmx|svm)\b`).Match(info) {
		t.Skip("this host's CPU has virtualization")
	}
	d := qemu.New(qemu.Options{})
	t.Cleanup(d.Close)
	caps, err := d.Probe(t.Context())
	if errdefs.IsUnavailable(err) {
		t.Skip(err)
	}
	if err != nil || caps.Accel != vmm.AccelTCG {
		t.Errorf("got %+v, %v, want tcg", caps, err)
	}
}
