package pod

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/seccomp"
)

// ociSpec turns a Spec into the OCI runtime spec that hyperstart runs. The
// defaults are Docker's (moby daemon/pkg/oci). hostname is for $HOSTNAME: the
// name itself is the VM's, which was configured with it. The seccomp
// filter, nil for none, goes beside the spec: the host compiles it.
func ociSpec(sp Spec, hostname string, size *specs.Box) (*specs.Spec, *seccomp.Filter, error) {
	caps, err := capabilities(sp.Privileged, sp.CapAdd, sp.CapDrop)
	if err != nil {
		return nil, nil, err
	}
	rlimits, err := rlimits(sp.Ulimits)
	if err != nil {
		return nil, nil, err
	}
	process := processSpec(sp.Args, environment(sp, hostname), sp.Dir, caps)
	process.Terminal, process.ConsoleSize = sp.TTY, size
	process.NoNewPrivileges = sp.NoNewPrivs
	process.Rlimits = rlimits
	process.OOMScoreAdj = &sp.OOMScoreAdj

	spec := &specs.Spec{
		Version: specs.Version,
		Process: process,
		Root:    &specs.Root{Path: "rootfs", Readonly: sp.ReadOnly},
		Mounts:  mounts(sp),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
			Resources:  resources(sp.Resources),
			Sysctl:     sysctls(sp.Sysctls),
		},
	}
	if sp.IPCMode == "private" {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.IPCNamespace})
	}
	if !sp.Privileged {
		spec.Linux.Resources.Devices = allowedDevices()
	}
	confine(spec, sp)
	filter, err := filters.get(sp, spec)
	if err != nil {
		return nil, nil, fmt.Errorf("seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return spec, filter, nil
}

// OrdinarySpec is the OCI runtime spec, as JSON, of a container for which
// nothing was asked: templates are made ready for it.
func OrdinarySpec() ([]byte, error) {
	spec, _, err := ociSpec(Spec{Args: []string{"true"}}, "", nil)
	if err != nil {
		return nil, err
	}
	return json.Marshal(spec)
}

// sysctls adds what was asked for to what Docker sets in a network of a
// container's own: any user may bind low ports and ping.
func sysctls(asked map[string]string) map[string]string {
	all := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "0",
		"net.ipv4.ping_group_range":           "0 2147483647",
	}
	maps.Copy(all, asked)
	return all
}

// allowedDevices are Docker's: every device may be made, few may be used. The
// VM's disks are not among them.
func allowedDevices() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	const any = -1
	for _, d := range [][2]int64{
		{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null, zero, full, random, urandom
		{5, 0}, {5, 1}, {5, 2}, {136, any}, // tty, console, ptmx, pts
	} {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Access: "rwm"}
		if d[1] != any {
			r.Minor = &d[1]
		}
		rules = append(rules, r)
	}
	return rules
}

// confine adds masked and read-only paths.
func confine(spec *specs.Spec, sp Spec) {
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = sp.MaskedPaths, sp.ReadonlyPaths
	if sp.Privileged {
		return
	}
	if sp.MaskedPaths == nil {
		spec.Linux.MaskedPaths = slices.Clone(defaultMasked)
	}
	if sp.ReadonlyPaths == nil {
		spec.Linux.ReadonlyPaths = slices.Clone(defaultReadonly)
	}
}

func processSpec(args, env []string, dir string, caps []string) *specs.Process {
	if dir == "" {
		dir = "/"
	}
	return &specs.Process{
		Args: args, Env: env, Cwd: path.Clean("/" + dir),
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment puts what every process gets before what was asked for; the
// later of two with one name wins.
func environment(sp Spec, hostname string) []string {
	env := []string{defaultPath, "HOSTNAME=" + hostname}
	if sp.TTY {
		env = append(env, "TERM=xterm")
	}
	return mergeEnv(env, sp.Env)
}

// mergeEnv replaces variables of base by those of over; a bare name in over
// removes the variable.
func mergeEnv(base, over []string) []string {
	env := slices.Clone(base)
	for _, e := range over {
		name, _, set := strings.Cut(e, "=")
		i := slices.IndexFunc(env, func(b string) bool { return strings.HasPrefix(b, name+"=") })
		switch {
		case i >= 0 && set:
			env[i] = e
		case i >= 0:
			env = slices.Delete(env, i, i+1)
		case set:
			env = append(env, e)
		}
	}
	return env
}

var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	defaultCaps     = []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
	// allCaps are those of Linux 6.12, capabilities(7).
	allCaps = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
		CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER
		CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE
		CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP
		CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF
		CAP_CHECKPOINT_RESTORE`)
)

// capabilities applies --cap-add and --cap-drop to the defaults, as Docker:
// "ALL" on one side makes the other an exception list.
func capabilities(privileged bool, add, drop []string) ([]string, error) {
	if privileged {
		return allCaps, nil
	}
	add, err := capNames(add)
	if err != nil {
		return nil, err
	}
	if drop, err = capNames(drop); err != nil {
		return nil, err
	}
	var base []string
	switch {
	case slices.Contains(add, "ALL"):
		base = allCaps
	case slices.Contains(drop, "ALL"):
		base, drop = nil, nil
	default:
		base = defaultCaps
	}
	var caps []string
	for _, c := range allCaps {
		if (slices.Contains(base, c) || slices.Contains(add, c)) && !slices.Contains(drop, c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

func capNames(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		c := strings.ToUpper(n)
		if c != "ALL" && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if c != "ALL" && !slices.Contains(allCaps, c) {
			return nil, textError{fmt.Sprintf("unknown capability: %q", n), errdefs.ErrInvalidArgument}
		}
		out = append(out, c)
	}
	return out, nil
}

// ulimits are the names setrlimit(2) knows.
var ulimits = strings.Fields("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")

// rlimits adds what was asked for to the defaults, which are systemd's for a service.
func rlimits(asked []Ulimit) ([]specs.POSIXRlimit, error) {
	const infinity = ^uint64(0)
	set := map[string]specs.POSIXRlimit{
		"nofile":  {Soft: 1024, Hard: 524288},
		"nproc":   {Soft: infinity, Hard: infinity},
		"memlock": {Soft: 8 << 20, Hard: 8 << 20},
	}
	for _, u := range asked {
		name := strings.ToLower(u.Name)
		if !slices.Contains(ulimits, name) {
			return nil, textError{"invalid ulimit type: " + u.Name, errdefs.ErrInvalidArgument}
		}
		if u.Hard >= 0 && (u.Soft > u.Hard || u.Soft < 0) {
			return nil, textError{fmt.Sprintf("ulimit %s: soft limit %d is above the hard limit %d", u.Name, u.Soft, u.Hard), errdefs.ErrInvalidArgument}
		}
		// -1 is "unlimited", which is all ones for the kernel too.
		set[name] = specs.POSIXRlimit{Soft: uint64(u.Soft), Hard: uint64(u.Hard)}
	}
	limits := make([]specs.POSIXRlimit, 0, len(set))
	for name, l := range set {
		l.Type = "RLIMIT_" + strings.ToUpper(name)
		limits = append(limits, l)
	}
	sort.Slice(limits, func(i, j int) bool { return limits[i].Type < limits[j].Type })
	return limits, nil
}

// podShm is the pod's shared memory in the guest (guest/wire).
const podShm = "/run/pod/shm"

// podVolumes is where the pod's volumes are in the guest.
const podVolumes = "/run/pod/volumes"

func mounts(sp Spec) []specs.Mount {
	ro := "ro"
	if sp.Privileged {
		ro = "rw"
	}
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{ro, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "bind", Source: podShm, Options: []string{"rbind", "nosuid", "noexec", "nodev"}},
	}
	if sp.IPCMode == "private" {
		m[len(m)-1] = specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", cmp.Or(sp.ShmBytes, 64*mib))}}
	}
	paths := make([]string, 0, len(sp.Tmpfs))
	for p := range sp.Tmpfs {
		paths = append(paths, p)
	}
	sort.Strings(paths) // a parent before what lies in it
	for _, p := range paths {
		o := []string{"noexec", "nosuid", "nodev"}
		if sp.Tmpfs[p] != "" {
			o = mergeOptions(o, strings.Split(sp.Tmpfs[p], ","))
		}
		m = append(m, specs.Mount{Destination: p, Type: "tmpfs", Source: "tmpfs", Options: o})
	}
	for _, v := range sp.Mounts {
		o := []string{"rbind", "rw"}
		if v.ReadOnly {
			o[1] = "ro"
		}
		m = append(m, specs.Mount{Destination: v.Path, Type: "bind", Source: path.Join(podVolumes, v.Volume, path.Clean("/"+v.SubPath)), Options: o})
	}
	return m
}

// mergeOptions lets the positive form of an option replace the default
// negative one: "exec" takes away "noexec".
func mergeOptions(base, over []string) []string {
	for _, o := range over {
		base = slices.DeleteFunc(base, func(b string) bool { return b == "no"+o || b == o })
		base = append(base, o)
	}
	return base
}

func resources(r Resources) *specs.LinuxResources {
	res := &specs.LinuxResources{}
	if r.MemoryBytes != 0 || r.MemorySwapBytes != 0 || r.MemoryReservationBytes != 0 {
		res.Memory = &specs.LinuxMemory{}
		setIf(&res.Memory.Limit, r.MemoryBytes)
		setIf(&res.Memory.Swap, r.MemorySwapBytes)
		setIf(&res.Memory.Reservation, r.MemoryReservationBytes)
	}
	if r.NanoCPUs != 0 {
		r.CPUPeriodUs, r.CPUQuotaUs = 100_000, r.NanoCPUs/10_000
	}
	if r.CPUShares != 0 || r.CPUQuotaUs != 0 || r.CPUPeriodUs != 0 || r.CPUSet != "" {
		res.CPU = &specs.LinuxCPU{Cpus: r.CPUSet}
		setIf(&res.CPU.Shares, r.CPUShares)
		setIf(&res.CPU.Quota, r.CPUQuotaUs)
		setIf(&res.CPU.Period, r.CPUPeriodUs)
	}
	if r.PIDs != 0 {
		res.Pids = &specs.LinuxPids{Limit: &r.PIDs}
	}
	return res
}

func setIf[T comparable](to **T, v T) {
	var zero T
	if v != zero {
		*to = &v
	}
}
