package guestinit_test

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// The shape of the template that clones are made of, and the slots' names.
const (
	cloneMiB = 4096

	layerSlots = 8
	cloneMAC   = "02:68:74:00:00:01"
	upperSlot  = "w0"
)

func layerSlot(i int) string { return fmt.Sprint("l", i) }

// A template is a saved VM.
type template struct {
	memory, state *os.File
}

// newTemplate boots a VM, does what prepare says, settles and saves it.
func newTemplate(t *testing.T, prepare func(*vm)) *template {
	t.Helper()
	v := prepareVM(t)
	if built().machine != "microvm" {
		t.Skip("clones are tested on a microvm")
	}
	fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &template{memory: os.NewFile(uintptr(fd), "memory")}
	t.Cleanup(func() { tpl.memory.Close() })
	if err := tpl.memory.Truncate(cloneMiB << 20); err != nil {
		t.Fatal(err)
	}
	v.launchSlots(tpl, nil)
	v.connect()
	if prepare != nil {
		prepare(v)
	}
	if _, err := v.c.Settle(v.ctx(), &wire.SettleRequest{Spec: ordinarySpec(t)}); err != nil {
		t.Fatal(err)
	}
	<-v.c.Done()
	v.c.Close()
	q := v.qmp()
	q.do("stop", nil)
	q.ignoreShared()
	q.do("migrate", map[string]any{"uri": "exec:cat >state"})
	q.migrated()
	v.cmd.Process.Kill()
	<-v.exited
	if _, err := unix.FcntlInt(tpl.memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	if tpl.state, err = os.Open(filepath.Join(v.dir, "state")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpl.state.Close() })
	var st unix.Stat_t
	unix.Fstat(int(tpl.memory.Fd()), &st)
	t.Logf("template: %d MiB", st.Blocks*512>>20)
	return tpl
}

// clone makes a VM that was saved go on, with files in its slots. It does
// not connect to the guest.
func (tpl *template) clone(t *testing.T, layers []string, extra ...string) *vm {
	t.Helper()
	v := prepareVM(t)
	v.launchSlots(tpl, layers, append([]string{"-S", "-incoming", "defer"}, extra...)...)
	q := v.qmp()
	q.ignoreShared()
	tpl.state.Seek(0, 0)
	q.do("migrate-incoming", map[string]any{"uri": "fd:4"})
	q.migrated()
	v.started = time.Now()
	q.do("cont", nil)
	v.q = q
	return v
}

// launchSlots starts QEMU with slots: empty ones for a template, which has no
// state yet, else with layers and the writable disk in the first ones.
func (v *vm) launchSlots(tpl *template, layers []string, extra ...string) {
	v.t.Helper()
	a := built()
	share := "on"
	files := []*os.File{tpl.memory}
	if tpl.state != nil {
		share = "off"
		files = append(files, tpl.state)
	}
	args := []string{"-M", "microvm,acpi=on,isa-serial=on,graphics=off,mem-merge=off,memory-backend=m", "-cpu", "max,la57=off",
		"-accel", "tcg,thread=multi,tb-size=256", "-m", fmt.Sprint(cloneMiB), "-smp", cloneCPUs,
		"-object", fmt.Sprintf("memory-backend-file,id=m,size=%dM,mem-path=/proc/self/fd/3,share=%s", cloneMiB, share),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-global", "virtio-mmio.force-legacy=off",
		"-serial", "file:" + v.console(), "-qmp", "unix:" + v.dir + "/qmp,server=on,wait=off",
		"-chardev", "socket,id=guest,path=" + v.socket() + ",server=on,wait=off",
		"-device", "virtio-serial-device,max_ports=2", "-device", "virtserialport,chardev=guest,name=hyper.guest",
		"-device", "virtio-rng-device", "-device", "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on"}
	if tpl.state == nil {
		args = append(args, "-kernel", a.kernel.Path, "-initrd", a.initrd, "-append", "console=ttyS0 quiet panic=-1 pci=off swiotlb=noforce "+
			"noreplace-smp no_timer_check tsc=reliable tsc_early_khz="+tscKHz()+" lpj="+tscKHz()+"0 "+os.Getenv("HYPER_TEST_CMDLINE"))
	}
	slot := func(id, path, options string) {
		node := "driver=null-co,size=17592186044416,read-zeroes=on"
		if path != "" {
			node = "driver=file,filename=" + path
		}
		args = append(args, "-blockdev", node+",node-name="+id+options, "-device", "virtio-blk-device,num-queues=1,queue-size=64,drive="+id+",serial="+id)
	}
	for i := range layerSlots {
		path := ""
		if i < len(layers) {
			path = layers[i]
		}
		slot(layerSlot(i), path, ",read-only=on")
	}
	if tpl.state == nil {
		slot(upperSlot, "", "")
	} else {
		slot(upperSlot, v.disk(), ",discard=unmap")
	}
	args = append(args, "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-device,guest_announce=off,netdev=net,mac="+cloneMAC)
	v.execute(exec.Command("qemu-system-x86_64", append(args, extra...)...), files)
}

func (v *vm) execute(cmd *exec.Cmd, files []*os.File) {
	v.t.Helper()
	v.cmd = cmd
	var stderr bytes.Buffer
	cmd.Stderr, cmd.Dir, cmd.ExtraFiles = &stderr, v.dir, files
	cmd.Env = append(os.Environ(), "MALLOC_ARENA_MAX=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	v.started = time.Now()
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	go func() { cmd.Wait(); close(v.exited) }()
	v.t.Cleanup(func() {
		cmd.Process.Kill()
		<-v.exited
		if v.t.Failed() {
			b, _ := os.ReadFile(v.console())
			v.t.Logf("console:\n%s\nqemu: %s", b, stderr.String())
		}
	})
}

// A qmpConn is as much of QMP as these tests need.
type qmpConn struct {
	v *vm
	*json.Decoder
	conn net.Conn
}

type qmpMessage struct {
	Return json.RawMessage
	Error  *struct{ Desc string }
	Event  string
	Data   struct{ Status string }
}

func (v *vm) qmp() *qmpConn {
	v.t.Helper()
	var conn net.Conn
	var err error
	for range 1000 {
		if conn, err = net.Dial("unix", v.dir+"/qmp"); err == nil {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { conn.Close() })
	q := &qmpConn{v, json.NewDecoder(conn), conn}
	q.next()
	q.do("qmp_capabilities", nil)
	return q
}

func (q *qmpConn) next() (m qmpMessage) {
	q.v.t.Helper()
	q.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if err := q.Decode(&m); err != nil {
		q.v.t.Fatal(err)
	}
	return m
}

func (q *qmpConn) do(command string, args map[string]any) json.RawMessage {
	q.v.t.Helper()
	b, _ := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if args == nil {
		b, _ = json.Marshal(map[string]any{"execute": command})
	}
	q.conn.Write(b)
	for {
		m := q.next()
		if m.Error != nil {
			q.v.t.Fatalf("%s: %s", command, m.Error.Desc)
		}
		if m.Return != nil {
			return m.Return
		}
	}
}

func (q *qmpConn) ignoreShared() {
	q.v.t.Helper()
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	q.do("migrate-set-capabilities", map[string]any{"capabilities": []capability{{"x-ignore-shared", true}, {"events", true}}})
}

// migrated waits for the end of saving or loading.
func (q *qmpConn) migrated() {
	q.v.t.Helper()
	for {
		switch m := q.next(); {
		case m.Data.Status == "completed":
			return
		case m.Data.Status == "failed":
			q.v.t.Fatal("migration failed")
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

var cloneCPUs = cmp.Or(os.Getenv("HYPER_TEST_CPUS"), "4")
