// Package lab proves what needs KVM on hosts that have none: it boots the host's own root file system as a
// VM in which QEMU emulates a CPU with AMD's virtualization, and runs tests in there (README.md).
//
// It is skipped unless HYPER_LAB is set; make lab sets it. It needs root, and its kernel (build-kernel).
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
)

const (
	// limit is for the VM's whole life.
	limit = 6 * time.Minute
	// host is where the lab has the host's files, also those it mounts something over.
	host = "/run/host"
)

// suites are the test binaries that run in the lab, in this order, and how long each may take.
var suites = []struct {
	name, pkg string
	limit     time.Duration
}{
	{"inside", "./test/lab/inside", 3 * time.Minute},
	{"vmm", "./internal/vmm/qemu", 4 * time.Minute},
}

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
	report(t, run(t, dir, kernel))
}

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
	var list strings.Builder
	for _, s := range suites {
		goTool(t, "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/"+s.name+".test", s.pkg)
		fmt.Fprintf(&list, "%s %d $HYPER_LAB_DIR/%[1]s.test -test.v\n", s.name, int(s.limit.Seconds()))
	}
	image, err := exec.Command("../images/make", "busybox").Output()
	if err != nil {
		t.Fatalf("test/images/make busybox: %v", err)
	}
	env := fmt.Sprintf("export HYPER_TEST_KERNEL=%q HYPER_LAB_IMAGE=%q\n",
		host+realpath(t, filepath.Join(cache(t), "kernel", "hyperkernel", "kernel")), host+strings.TrimSpace(string(image)))
	// The suite of package vmm builds its guest; there is no compiler that would be fast enough in the lab.
	shim := "#!/bin/sh\nwhile [ $# -gt 0 ] && [ \"$1\" != -o ]; do shift; done\nexec cp \"$HYPER_LAB_DIR/testguest\" \"$2\"\n"
	for name, text := range map[string]string{"tests": list.String(), "env": env, "path/go": shim} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
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
func run(t *testing.T, dir, kernel string) string {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	serial := filepath.Join(dir, "serial")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-name", "hyper-lab", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "microvm,acpi=on,isa-serial=on", "-global", "virtio-mmio.force-legacy=off",
		"-accel", "tcg,tb-size=1024", "-cpu", "max,+svm,+npt,la57=off", "-smp", "1", "-m", "3G",
		"-kernel", kernel, "-append", cmdline(filepath.Join(realpath(t, here), "init"), dir),
		"-serial", "file:"+serial,
		"-device", "virtio-serial-device", "-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out",
		"-device", "virtio-rng-device",
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-device,fsdev=root,mount_tag=rootfs")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	// It ends with this test, however that ends; the kernel's rule is about the thread that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	_, err = io.Copy(io.MultiWriter(&text, t.Output()), out)
	if err = errors.Join(err, cmd.Wait()); err != nil || !strings.Contains(text.String(), "LAB done") {
		printed, _ := os.ReadFile(serial)
		t.Errorf("the lab ended early: %v, after %v\n%s\n%s", err, time.Since(start), &stderr, vmm.LastLines(printed, 40))
	}
	t.Logf("the lab ran for %v", time.Since(start).Round(time.Second))
	return text.String()
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

var (
	suiteLine = regexp.MustCompile(`^LAB (begin|end) (\S+)(?: (\d+))?$`)
	testLine  = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) `)
)

// report makes a subtest of each test that ran in the lab.
func report(t *testing.T, text string) {
	ended := map[string]bool{}
	var suite string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if m := suiteLine.FindStringSubmatch(line); m != nil && m[1] == "begin" {
			suite = m[2]
		} else if m != nil {
			ended[m[2]] = true
			if m[3] != "0" {
				t.Errorf("suite %s ended with status %s", m[2], m[3])
			}
		}
		if m := testLine.FindStringSubmatch(line); m != nil {
			t.Run(suite+"/"+m[2], func(t *testing.T) {
				switch m[1] {
				case "FAIL":
					t.Error("failed in the lab, see its output above")
				case "SKIP":
					t.Skip("skipped in the lab")
				}
			})
		}
	}
	for _, s := range suites {
		if !ended[s.name] {
			t.Errorf("suite %s did not end", s.name)
		}
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
