package guestinit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	profiles "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/seccomp"
)

// The tests of this package boot hyperstart in QEMU. HYPER_TEST_KERNEL is the
// kernel as boot.Kernels.Select takes it; without any kernel they are skipped.
// HYPER_TEST_MACHINE is microvm (default for the HyperKernel) or q35.

// artifacts are built once.
type artifacts struct {
	dir, initrd string
	layers      []string
	blank       string
	kernel      boot.Kernel
	machine     string
	err         error
}

var built = sync.OnceValue(func() (a artifacts) {
	a.dir, a.err = os.MkdirTemp("", "hypervm")
	if a.err == nil {
		a.err = a.build()
	}
	return a
})

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(built().dir)
	os.Exit(code)
}

func (a *artifacts) build() error {
	name := os.Getenv("HYPER_TEST_KERNEL")
	var err error
	if a.kernel, err = boot.DefaultKernels().Select(name); err != nil {
		return err
	}
	if a.machine = os.Getenv("HYPER_TEST_MACHINE"); a.machine == "" {
		if a.machine = "microvm"; a.kernel.ModulesDir != "" {
			a.machine = "q35"
		}
	}
	hs := filepath.Join(a.dir, "hyperstart")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", hs, "github.com/hyper-run/hyper/cmd/hyperstart")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build hyperstart: %w\n%s", err, out)
	}
	if a.initrd, err = boot.Initrd(a.dir, hs, a.kernel); err != nil {
		return err
	}
	if err := a.busyboxLayer(); err != nil {
		return err
	}
	for i := range 3 {
		if err := a.layer(fmt.Sprint("extra", i), map[string]string{"etc/layer": fmt.Sprint(i), fmt.Sprintf("etc/layer%d", i): ""}); err != nil {
			return err
		}
	}
	a.blank = filepath.Join(a.dir, "blank.ext4")
	return run("mke2fs", "-q", "-t", "ext4", "-E", "nodiscard,lazy_journal_init=1,assume_storage_prezeroed=1", a.blank, "256M")
}

func (a *artifacts) busyboxLayer() error {
	bb, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	bin := filepath.Join(a.dir, "base", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := run("cp", bb, bin+"/busybox"); err != nil {
		return err
	}
	list, err := exec.Command(bb, "--list").Output()
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(list)) {
		os.Symlink("busybox", filepath.Join(bin, applet))
	}
	return a.layer("base", map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
		"etc/group":  "root:x:0:\nalice:x:1000:\nusers:x:100:alice\nwheel:x:10:\n",
		"etc/plain":  "text",
		"tmp/.keep":  "",
	})
}

func (a *artifacts) layer(name string, files map[string]string) error {
	dir := filepath.Join(a.dir, name)
	for f, content := range files {
		path := filepath.Join(dir, f)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	image := dir + ".erofs"
	a.layers = append(a.layers, image)
	return run("mkfs.erofs", "--quiet", "--all-root", image, dir)
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// A vm is one running virtual machine and its guest's client.
type vm struct {
	t        *testing.T
	dir      string
	cmd      *exec.Cmd
	exited   chan struct{}
	started  time.Time
	c        *guest.Client
	nextExec int
	q        *qmpConn   // of a clone
	root     *testing.T // the test that the VM lives as long as
}

// upper is the serial of the writable disk.
const upper = "upper"

func startVM(t *testing.T) *vm {
	t.Helper()
	v := prepareVM(t)
	v.launch("hyper.guest")
	v.connect()
	return v
}

func prepareVM(t *testing.T) *vm {
	t.Helper()
	a := built()
	if errdefs.IsNotFound(a.err) && os.Getenv("HYPER_TEST_KERNEL") == "" {
		t.Skip(a.err)
	}
	if a.err != nil {
		t.Fatal(a.err)
	}
	v := &vm{t: t, root: t, dir: t.TempDir(), exited: make(chan struct{})}
	if err := run("cp", "--sparse=always", a.blank, v.disk()); err != nil {
		t.Fatal(err)
	}
	return v
}

// launch starts QEMU with a virtio-serial port of a name.
func (v *vm) launch(port string) {
	v.t.Helper()
	a := built()
	bus := "device"
	machine := "microvm,isa-serial=on,acpi=off"
	if a.machine == "q35" {
		bus, machine = "pci", "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off"
	}
	args := []string{"-M", machine, "-cpu", "max", "-accel", "tcg,thread=multi", "-m", "256", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", a.kernel.Path, "-initrd", a.initrd, "-append", "console=ttyS0 quiet panic=-1 tsc=reliable tsc_early_khz=" + tscKHz(),
		"-serial", "file:" + v.console(),
		"-device", "virtio-rng-" + bus, "-device", "virtio-serial-" + bus,
		"-chardev", "socket,id=guest,path=" + v.socket() + ",server=on,wait=off",
		"-device", "virtserialport,chardev=guest,name=" + port,
		"-netdev", "user,id=net", "-device", "virtio-net-" + bus + ",netdev=net,mac=52:54:00:12:34:56"}
	drive := func(id, path, options string) {
		args = append(args, "-drive", fmt.Sprintf("id=%s,file=%s,if=none,format=raw%s", id, path, options),
			"-device", fmt.Sprintf("virtio-blk-%s,drive=%s,serial=%s", bus, id, id))
	}
	for i, l := range a.layers {
		drive(fmt.Sprint("layer", i), l, ",readonly=on")
	}
	drive(upper, v.disk(), ",discard=unmap")
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	var stderr bytes.Buffer
	v.cmd.Stderr = &stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	v.started = time.Now()
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	go func() { v.cmd.Wait(); close(v.exited) }()
	v.t.Cleanup(func() {
		v.cmd.Process.Kill()
		<-v.exited
		if v.t.Failed() {
			b, _ := os.ReadFile(v.console())
			v.t.Logf("console:\n%s\nqemu: %s", b, stderr.String())
		}
	})
}

// tscKHz is the rate of the counter that TCG passes through to the guest,
// which can't calibrate it on a busy machine and then has no fine clock.
func tscKHz() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(b), "cpu MHz")
	_, rest, _ = strings.Cut(rest, ":")
	var mhz float64
	fmt.Sscan(rest, &mhz)
	return fmt.Sprint(int(mhz * 1000))
}

func (v *vm) disk() string    { return filepath.Join(v.dir, "upper.ext4") }
func (v *vm) console() string { return filepath.Join(v.dir, "console") }
func (v *vm) socket() string  { return filepath.Join(v.dir, "guest") }

// connect makes a new connection, and waits for QEMU to listen.
func (v *vm) connect() {
	v.t.Helper()
	var conn net.Conn
	var err error
	for range 500 {
		if conn, err = net.Dial("unix", v.socket()); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if v.c, err = guest.Dial(ctx, conn); err != nil {
		v.t.Fatal(err)
	}
	c := v.c
	v.root.Cleanup(func() { c.Close() })
}

func (v *vm) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	v.t.Cleanup(cancel)
	return ctx
}

// A config is what a test changes of the usual container.
type config struct {
	args     []string
	tty      bool
	stdin    bool
	init     bool
	user     string
	readOnly bool
	noUpper  bool
	layers   []string
	files    []*wire.File
	spec     func(*specs.Spec)
	filter   *seccomp.Filter
	disk     string // writable; "": upper
	pids     string // PID namespace
	io       *wire.IOLimit
}

var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

func process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin", "TERM=xterm"},
		Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps}}
}

func dockerSpec(args ...string) *specs.Spec {
	safe := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Process: process(args...),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: safe},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(safe, "ro")},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(safe, "ro")},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: safe},
			{Destination: "/dev/shm", Type: "bind", Source: "/run/pod/shm", Options: []string{"rbind", "rw"}},
		},
		Linux: &specs.Linux{
			MaskedPaths:   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// defaultFilter is what Docker's profile makes of spec's capabilities.
func defaultFilter(t testing.TB, spec *specs.Spec) *seccomp.Filter {
	t.Helper()
	p, err := profiles.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	f, err := seccomp.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (v *vm) create(id string, c config) {
	v.t.Helper()
	if err := v.tryCreate(id, c); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) tryCreate(id string, c config) error {
	spec := dockerSpec(c.args...)
	spec.Process.Terminal = c.tty
	if c.spec != nil {
		c.spec(spec)
	}
	b, _ := json.Marshal(spec)
	layers := c.layers
	if layers == nil {
		layers = []string{"layer0"}
	}
	root := &wire.RootFS{Layers: layers, Upper: upper, ReadOnly: c.readOnly}
	if c.noUpper {
		root.Upper = ""
	}
	if c.disk != "" {
		root.Upper = c.disk
	}
	r := &wire.CreateContainerRequest{Id: id, Rootfs: root, Spec: b, Files: c.files, PidNamespace: c.pids, Io: c.io}
	if f := c.filter; f != nil {
		r.SeccompFilter, r.SeccompFlags = f.Program, f.Flags
	}
	_, err := v.c.CreateContainer(v.ctx(), r)
	return err
}

func (v *vm) tryStart(id string, c config) error {
	_, err := v.c.StartProcess(v.ctx(), &wire.StartProcessRequest{ContainerId: id, Stdin: c.stdin, Init: c.init, User: c.user})
	return err
}

func (v *vm) start(id string, c config) {
	v.t.Helper()
	v.create(id, c)
	if err := v.tryStart(id, c); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) delete(id string) {
	v.t.Helper()
	if _, err := v.c.DeleteContainer(v.ctx(), &wire.DeleteContainerRequest{Id: id}); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) wait(id, exec string) *wire.WaitResponse {
	v.t.Helper()
	w, err := v.c.Wait(v.ctx(), &wire.WaitRequest{ContainerId: id, ExecId: exec})
	if err != nil {
		v.t.Fatal(err)
	}
	return w
}

func (v *vm) output(id, exec string, kind wire.StreamHeader_Kind) string {
	v.t.Helper()
	o, err := v.c.Output(v.ctx(), id, exec, kind, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	defer o.Close()
	var b bytes.Buffer
	if _, err := copyAcking(&b, o, 0); err != nil {
		v.t.Fatal(err)
	}
	return b.String()
}

func copyAcking(w io.Writer, o *guest.Output, at uint64) (uint64, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := o.Read(buf)
		w.Write(buf[:n])
		at += uint64(n)
		o.Ack(at)
		if err == io.EOF {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}

// run runs a container to its end and returns its output, stderr last.
func (v *vm) run(c config) (string, *wire.WaitResponse) {
	v.t.Helper()
	v.start("run", c)
	defer v.delete("run")
	out := v.output("run", "", wire.StreamHeader_STDOUT)
	if !c.tty {
		out += v.output("run", "", wire.StreamHeader_STDERR)
	}
	return out, v.wait("run", "")
}

// sh runs a script in a container of its own.
func (v *vm) sh(script string, c config) string {
	v.t.Helper()
	c.args = []string{"sh", "-c", script}
	out, _ := v.run(c)
	return out
}

// exec runs a process in a running container to its end.
func (v *vm) exec(id string, p *specs.Process, user string) (string, *wire.WaitResponse, error) {
	v.t.Helper()
	v.nextExec++
	e := fmt.Sprint("e", v.nextExec)
	b, _ := json.Marshal(p)
	if _, err := v.c.StartProcess(v.ctx(), &wire.StartProcessRequest{ContainerId: id, ExecId: e, Process: b, User: user}); err != nil {
		return "", nil, err
	}
	out := v.output(id, e, wire.StreamHeader_STDOUT) + v.output(id, e, wire.StreamHeader_STDERR)
	w := v.wait(id, e)
	if _, err := v.c.DeleteProcess(v.ctx(), &wire.DeleteProcessRequest{ContainerId: id, ExecId: e}); err != nil {
		v.t.Error(err)
	}
	return out, w, nil
}
