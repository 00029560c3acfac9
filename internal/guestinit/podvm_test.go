package guestinit_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// What the VM of TestPod has beside its first layers and writable disk.
const (
	podDisks   = 3      // writable ones: upper, upper1, ...
	podVolume  = "v0"   // an ext4 disk for a volume
	swapSlot   = "swap" // a layer whose file is changed
	swapBytes  = 8 << 20
	podMiB     = 512
	podCPUs    = 2
	podMaxPID  = 1500
	podNetwork = "52:54:00:12:34:57"
)

func podDisk(i int) string {
	if i == 0 {
		return upper
	}
	return fmt.Sprint(upper, i)
}

// startPodVM boots a VM with many disks, and a bus for more.
func startPodVM(t *testing.T) *vm {
	t.Helper()
	v := prepareVM(t)
	a := built()
	bus, machine := "device", "microvm,acpi=on,isa-serial=on"
	if a.machine == "q35" {
		bus, machine = "pci", "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off"
	}
	args := []string{"-M", machine, "-cpu", "max,la57=off", "-accel", "tcg,thread=multi", "-m", fmt.Sprint(podMiB), "-smp", fmt.Sprint(podCPUs),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-kernel", a.kernel.Path, "-initrd", a.initrd,
		"-append", "console=ttyS0 quiet panic=-1 noreplace-smp no_timer_check tsc=reliable tsc_early_khz=" + tscKHz() + " lpj=" + tscKHz() + "0 sysctl.kernel.pid_max=" + fmt.Sprint(podMaxPID),
		"-serial", "file:" + v.console(), "-qmp", "unix:" + v.dir + "/qmp,server=on,wait=off",
		"-device", "virtio-serial-" + bus, "-chardev", "socket,id=guest,path=" + v.socket() + ",server=on,wait=off",
		"-device", "virtserialport,chardev=guest,name=hyper.guest", "-device", "virtio-scsi-" + bus + ",id=plug",
		"-netdev", "user,id=net,restrict=on", "-device", "virtio-net-" + bus + ",netdev=net,mac=" + podNetwork}
	disk := func(id, file, options string) {
		args = append(args, "-blockdev", "driver=file,node-name=f-"+id+",filename="+file+options, "-blockdev", "driver=raw,node-name=d-"+id+",file=f-"+id+options,
			"-device", "virtio-blk-"+bus+",drive=d-"+id+",serial="+id)
	}
	for i, l := range a.layers[:2] {
		disk(fmt.Sprint("layer", i), l, ",read-only=on")
	}
	disk(swapSlot, v.swapFile("one"), ",read-only=on")
	for i := range podDisks {
		disk(podDisk(i), v.blank(podDisk(i)), ",discard=unmap")
	}
	disk(podVolume, v.blank(podVolume), ",discard=unmap")
	v.execute(exec.Command("qemu-system-x86_64", args...), nil)
	v.connect()
	v.q = v.qmp()
	return v
}

// blank makes a blank disk.
func (v *vm) blank(name string) string {
	v.t.Helper()
	file := filepath.Join(v.dir, name+".ext4")
	if err := run("cp", "--sparse=always", built().blank, file); err != nil {
		v.t.Fatal(err)
	}
	return file
}

// swapFile makes a layer with a file that says what it is; all are of one size.
func (v *vm) swapFile(content string) string {
	v.t.Helper()
	dir := filepath.Join(v.dir, content)
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "which"), []byte(content+"\n"), 0o644)
	}
	if err == nil {
		err = run("mkfs.erofs", "--quiet", "--all-root", dir+".erofs", dir)
	}
	if err == nil {
		err = os.Truncate(dir+".erofs", swapBytes)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	return dir + ".erofs"
}

// swap puts another file into the slot.
func (v *vm) swap(file string) {
	v.t.Helper()
	v.q.do("blockdev-add", map[string]any{"driver": "file", "node-name": "f-other", "filename": file, "read-only": true})
	v.q.do("blockdev-reopen", map[string]any{"options": []any{map[string]any{
		"driver": "raw", "node-name": "d-" + swapSlot, "file": "f-other", "read-only": true}}})
}

// plugNode names the node of a plugged disk: 31 letters at most.
func plugNode(id string) string { return "p-" + id[:min(len(id), 20)] }

// plug adds a disk with an ID, unplug takes it away.
func (v *vm) plug(id, file string) {
	v.t.Helper()
	v.q.do("blockdev-add", map[string]any{"driver": "file", "node-name": plugNode(id), "filename": file, "discard": "unmap"})
	v.q.do("device_add", map[string]any{"driver": "scsi-hd", "id": "s-" + id, "bus": "plug.0", "drive": plugNode(id), "serial": id})
}

func (v *vm) unplug(id string) {
	v.t.Helper()
	v.q.do("device_del", map[string]any{"id": "s-" + id})
	for v.q.next().Event != "DEVICE_DELETED" {
	}
	v.q.do("blockdev-del", map[string]any{"node-name": plugNode(id)})
}

// configure calls Configure, which must do it.
func (v *vm) configure(r *wire.ConfigureRequest) {
	v.t.Helper()
	if _, err := v.c.Configure(v.ctx(), r); err != nil {
		v.t.Fatal(err)
	}
}
