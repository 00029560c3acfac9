package guestinit

import (
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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

func TestEnvironment(t *testing.T) {
	id := &identity{home: "/home/a"}
	if got := id.environment([]string{"A=1"}); !reflect.DeepEqual(got, []string{"A=1", "HOME=/home/a"}) {
		t.Error(got)
	}
	if got := id.environment([]string{"HOME=/x"}); !reflect.DeepEqual(got, []string{"HOME=/x"}) {
		t.Error(got)
	}
}
