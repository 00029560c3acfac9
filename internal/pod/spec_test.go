package pod

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/seccomp"
)

func TestCapabilities(t *testing.T) {
	tests := []struct {
		name       string
		privileged bool
		add, drop  []string
		has, not   []string
		n          int
	}{
		{"default", false, nil, nil, []string{"CAP_CHOWN"}, []string{"CAP_SYS_ADMIN"}, 14},
		{"add without prefix, any case", false, []string{"sys_admin"}, nil, []string{"CAP_SYS_ADMIN", "CAP_CHOWN"}, nil, 15},
		{"drop all, add one", false, []string{"NET_RAW"}, []string{"ALL"}, []string{"CAP_NET_RAW"}, nil, 1},
		{"add all, drop one", false, []string{"ALL"}, []string{"CAP_SYS_ADMIN"}, []string{"CAP_BPF"}, []string{"CAP_SYS_ADMIN"}, len(allCaps) - 1},
		{"privileged ignores both", true, nil, []string{"ALL"}, []string{"CAP_SYS_ADMIN"}, nil, len(allCaps)},
		{"drop a default", false, nil, []string{"MKNOD"}, nil, []string{"CAP_MKNOD"}, 13},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := capabilities(tt.privileged, tt.add, tt.drop)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != tt.n {
				t.Errorf("%d capabilities, want %d: %v", len(got), tt.n, got)
			}
			for _, c := range tt.has {
				if !slices.Contains(got, c) {
					t.Errorf("%s is missing", c)
				}
			}
			for _, c := range tt.not {
				if slices.Contains(got, c) {
					t.Errorf("%s must not be there", c)
				}
			}
		})
	}
	if _, err := capabilities(false, []string{"FLY"}, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown capability: %v", err)
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"PATH=/bin", "A=1", "B=2"}, []string{"A=x=y", "B", "C=3", "GONE"})
	if diff := cmp.Diff([]string{"PATH=/bin", "A=x=y", "C=3"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"": unix.SIGTERM, "SIGQUIT": unix.SIGQUIT, "quit": unix.SIGQUIT, "9": unix.SIGKILL, "RTMIN": 34, "SIGRTMIN+3": 37, "64": 64,
	} {
		if got, err := parseSignal(text, unix.SIGTERM); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1", "65", "SIGNOPE", "RTMIN+99", "SIG"} {
		if got, err := parseSignal(text, unix.SIGTERM); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, %v; want an error", text, got, err)
		}
	}
}

func TestOCISpec(t *testing.T) {
	sp := Spec{
		Args: []string{"sh"}, Env: []string{"X=1"}, TTY: true, ReadOnly: true,
		Tmpfs:     map[string]string{"/run": "exec,size=1m", "/run/a": ""},
		Ulimits:   []Ulimit{{"nofile", 10, 20}},
		Resources: Resources{MemoryBytes: 64 << 20, NanoCPUs: 15e8, PIDs: 7},
	}
	spec, filter, err := ociSpec(sp, "host", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := spec.Process.Env, []string{defaultPath, "HOSTNAME=host", "TERM=xterm", "X=1"}; !cmp.Equal(got, want) {
		t.Errorf("env %v, want %v", got, want)
	}
	if !spec.Root.Readonly || filter == nil || spec.Linux.Seccomp != nil || len(spec.Linux.MaskedPaths) == 0 {
		t.Error("read-only root, seccomp or masked paths are missing")
	}
	if *spec.Linux.Resources.Memory.Limit != 64<<20 || *spec.Linux.Resources.CPU.Quota != 150000 || *spec.Linux.Resources.Pids.Limit != 7 {
		t.Errorf("resources %+v", spec.Linux.Resources)
	}
	var tmpfs []string
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Destination, "/run") {
			tmpfs = append(tmpfs, m.Destination+" "+strings.Join(m.Options, ","))
		}
	}
	want := []string{"/run nosuid,nodev,exec,size=1m", "/run/a noexec,nosuid,nodev"}
	if diff := cmp.Diff(want, tmpfs); diff != "" {
		t.Error(diff)
	}
	for _, l := range spec.Process.Rlimits {
		if l.Type == "RLIMIT_NOFILE" && (l.Soft != 10 || l.Hard != 20) {
			t.Errorf("nofile %+v", l)
		}
	}
	sp.Privileged = true
	if spec, filter, err = ociSpec(sp, "host", nil); err != nil || filter != nil || spec.Linux.MaskedPaths != nil {
		t.Errorf("privileged: %v, seccomp %v, masked %v", err, filter, spec.Linux.MaskedPaths)
	}
}

func TestBadSpecs(t *testing.T) {
	for name, sp := range map[string]Spec{
		"ulimit":  {Ulimits: []Ulimit{{"files", 1, 1}}},
		"reverse": {Ulimits: []Ulimit{{"nofile", 2, 1}}},
		"seccomp": {Seccomp: "{"},
		"action":  {Seccomp: `{"defaultAction":"SCMP_ACT_NOTIFY"}`},
	} {
		if _, _, err := ociSpec(sp, "h", nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want invalid argument", name, err)
		}
	}
}

func TestFilters(t *testing.T) {
	get := func(sp Spec) *seccomp.Filter {
		t.Helper()
		_, f, err := ociSpec(sp, "h", nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	usual := get(Spec{})
	if usual == nil || get(Spec{Args: []string{"sh"}, NoNewPrivs: true}) != usual {
		t.Error("the usual filter was compiled again")
	}
	if f := get(Spec{CapAdd: []string{"SYS_ADMIN"}}); f == nil || bytes.Equal(f.Program, usual.Program) {
		t.Error("capabilities do not shape the filter")
	}
	if f := get(Spec{Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW"}`}); f == nil || bytes.Equal(f.Program, usual.Program) {
		t.Error("the profile does not shape the filter")
	}
	if f := get(Spec{Seccomp: "unconfined"}); f != nil {
		t.Error("unconfined: there is a filter")
	}
}
