package guestinit

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward": "/proc/sys/net/ipv4/ip_forward", "net/ipv4/conf/eth0.1/forwarding": "/proc/sys/net/ipv4/conf/eth0.1/forwarding",
		"net.ipv4.conf.eth0/1.forwarding": "/proc/sys/net/ipv4/conf/eth0.1/forwarding", "/../../etc/passwd": "", "kernel/../../../etc": "", "": "",
	} {
		if got, err := sysctlPath(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  []string
		want []string
	}{
		{"sh", []string{"PATH=/bin:/usr/bin"}, []string{"/bin/sh", "/usr/bin/sh"}},
		{"sh", []string{"PATH=/bin", "X=1", "PATH=/sbin"}, []string{"/sbin/sh"}},
		{"sh", []string{"PATH=:/bin"}, []string{"sh", "/bin/sh"}},
		{"./sh", []string{"PATH=/bin"}, []string{"./sh"}},
		{"sh", nil, nil}, {"", []string{"PATH=/bin"}, nil},
	} {
		if got := candidates(tt.name, tt.env); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q %v: %v", tt.name, tt.env, got)
		}
	}
}

func TestParseOptions(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want options
	}{
		{"nosuid,ro,size=1m,mode=755", options{set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_RDONLY, data: []string{"size=1m", "mode=755"}}},
		{"ro,rw", options{clear: unix.MOUNT_ATTR_RDONLY}},
		{"rbind,rprivate", options{bind: true, recursive: true, propagation: unix.MS_PRIVATE}},
		{"bind,slave", options{bind: true, propagation: unix.MS_SLAVE}},
		{"noatime,strictatime", options{set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME}},
	} {
		if got := parseOptions(strings.Split(tt.in, ",")); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v", tt.in, got)
		}
	}
}

func TestCapabilities(t *testing.T) {
	s, err := parseCapabilities(&specs.LinuxCapabilities{Effective: []string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"}, Bounding: []string{"SYS_ADMIN"}}, 39)
	if err != nil || s.effective != 1 || s.bounding != 1<<unix.CAP_SYS_ADMIN {
		t.Errorf("%+v, %v", s, err)
	}
	if capabilityNames[unix.CAP_CHECKPOINT_RESTORE] != "CHECKPOINT_RESTORE" || len(capabilityNames) != unix.CAP_LAST_CAP+1 {
		t.Error("the list of names has a gap")
	}
	if _, err := parseCapabilities(&specs.LinuxCapabilities{Ambient: []string{"CAP_NONSENSE"}}, 40); err == nil {
		t.Error("unknown name: no error")
	}
}

func TestCheckSpec(t *testing.T) {
	for _, s := range []*specs.Spec{
		{Hooks: &specs.Hooks{}},
		{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "network", Path: "/x"}}}},
		{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "user"}}}},
		{Linux: &specs.Linux{RootfsPropagation: "shared"}},
		{Linux: &specs.Linux{Seccomp: &specs.LinuxSeccomp{}}},
		{Process: &specs.Process{ApparmorProfile: "x"}},
	} {
		if checkSpec(s) == nil {
			t.Errorf("%+v: no error", s)
		}
	}
	if err := checkSpec(&specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{RootfsPropagation: "rprivate"}}); err != nil {
		t.Error(err)
	}
}

func TestNewFilter(t *testing.T) {
	for n, ok := range map[int]bool{0: true, 8: true, 8 * 4096: true, 7: false, 12: false, 8 * 4097: false} {
		f, err := newFilter(&wire.CreateContainerRequest{SeccompFilter: make([]byte, n), SeccompFlags: 2})
		if (err == nil) != ok || (f != nil) != (ok && n > 0) {
			t.Errorf("%d bytes: %v, %v", n, f, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	id := &identity{home: "/home/a"}
	if got := id.environment([]string{"A=1"}); !reflect.DeepEqual(got, []string{"A=1", "HOME=/home/a"}) {
		t.Error(got)
	}
	if got := id.environment([]string{"HOME=", "A=1"}); !reflect.DeepEqual(got, []string{"A=1", "HOME=/home/a"}) {
		t.Error(got)
	}
	if got := id.environment([]string{"HOME=/x"}); !reflect.DeepEqual(got, []string{"HOME=/x"}) {
		t.Error(got)
	}
}

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nbob:x:500:100::/home/bob:/bin/sh\n",
		"etc/group":  "root:x:0:\ndaemon:x:1:root,bob\nwheel:x:10:root\nbob:x:100:\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, tt := range []struct {
		user string
		more []string
		p    specs.User
		want identity
	}{
		{"", nil, specs.User{}, identity{0, 0, []uint32{0, 1, 10}, "/root"}},
		{"", []string{"bob"}, specs.User{}, identity{0, 0, []uint32{0, 1, 10, 100}, "/root"}},
		{"", nil, specs.User{UID: 500, GID: 7, AdditionalGids: []uint32{8}}, identity{500, 7, []uint32{8}, "/home/bob"}},
		{"bob", nil, specs.User{}, identity{500, 100, []uint32{1, 100}, "/home/bob"}},
		{"500:daemon", nil, specs.User{}, identity{500, 1, []uint32{1}, "/home/bob"}},
		{"77", []string{"5"}, specs.User{}, identity{77, 0, []uint32{0, 5}, "/"}},
	} {
		got, err := new(Service).identify(root, &specs.Process{User: tt.p}, &wire.StartProcessRequest{User: tt.user, AdditionalGroups: tt.more})
		if err != nil || !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("%q %v %v: %+v, %v", tt.user, tt.more, tt.p, got, err)
		}
	}
}

func TestModeOf(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/run", 0); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Chmod(dir+"/run", 0o1750); err != nil {
		t.Fatal(err)
	}
	root, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got := modeOf(root, "/run"); !reflect.DeepEqual(got, []string{"mode=1750"}) {
		t.Error(got)
	}
	if got := modeOf(root, "/none"); got != nil {
		t.Error(got)
	}
}
