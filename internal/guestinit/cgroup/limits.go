package cgroup

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A setting is one value for one file.
type setting struct{ file, value string }

// Set applies limits; what r does not name stays as it is.
func (g *Group) Set(r *specs.LinuxResources) error {
	list, err := settings(r)
	if err != nil {
		return err
	}
	for _, s := range list {
		if err := g.write(s.file, s.value); err != nil {
			return err
		}
	}
	if len(r.Devices) > 0 {
		return g.allowDevices(r.Devices)
	}
	return nil
}

// settings translates limits to the files of version 2.
func settings(r *specs.LinuxResources) ([]setting, error) {
	var l []setting
	add := func(file, value string) { l = append(l, setting{file, value}) }
	if err := versionOne(r); err != nil {
		return nil, err
	}
	if m := r.Memory; m != nil {
		if err := memory(m, add); err != nil {
			return nil, err
		}
	}
	if c := r.CPU; c != nil {
		cpu(c, add)
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		add("pids.max", limit(*p.Limit, 1))
	}
	for _, h := range r.HugepageLimits {
		add("hugetlb."+h.Pagesize+".max", strconv.FormatUint(h.Limit, 10))
	}
	if b := r.BlockIO; b != nil {
		blockIO(b, add)
	}
	keys := make([]string, 0, len(r.Unified))
	for k := range r.Unified {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if strings.ContainsAny(k, "/\x00") || !strings.Contains(k, ".") || strings.HasPrefix(k, "cgroup.") {
			return nil, fmt.Errorf("set cgroup file %q: not a limit", k)
		}
		add(k, r.Unified[k])
	}
	return l, nil
}

// versionOne refuses what only version 1 could do.
func versionOne(r *specs.LinuxResources) error {
	m, c := r.Memory, r.CPU
	for what, asked := range map[string]bool{
		"network priorities": r.Network != nil,
		"RDMA limits":        len(r.Rdma) > 0,
		"memory swappiness":  m != nil && m.Swappiness != nil,
		//lint:ignore SA1019 deprecated, and refused here
		"kernel memory":        m != nil && (m.Kernel != nil || m.KernelTCP != nil),
		"no OOM killer":        m != nil && m.DisableOOMKiller != nil && *m.DisableOOMKiller,
		"real-time scheduling": c != nil && (c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 || c.RealtimePeriod != nil && *c.RealtimePeriod != 0),
	} {
		if asked {
			return fmt.Errorf("%s can't be had with cgroup v2", what)
		}
	}
	return nil
}

// limit is "max" for what is below least.
func limit(v, least int64) string {
	if v < least {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

func memory(m *specs.LinuxMemory, add func(file, value string)) error {
	if s := m.Swap; s != nil && *s != 0 {
		switch {
		case *s < 0:
			add("memory.swap.max", "max")
		case m.Limit == nil || *m.Limit > *s:
			return fmt.Errorf("limit memory and swap to %d: less than the memory limit", *s)
		default:
			add("memory.swap.max", strconv.FormatInt(*s-*m.Limit, 10))
		}
	}
	if m.Limit != nil && *m.Limit != 0 {
		add("memory.max", limit(*m.Limit, 0))
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		add("memory.low", limit(*m.Reservation, 0))
	}
	return nil
}

func cpu(c *specs.LinuxCPU, add func(file, value string)) {
	if c.Shares != nil && *c.Shares != 0 {
		// 2…262144 to 1…10000, as everyone does.
		shares := min(max(*c.Shares, 2), 262144)
		add("cpu.weight", strconv.FormatUint(1+(shares-2)*9999/262142, 10))
	}
	if c.Quota != nil || c.Period != nil {
		quota, period := "max", uint64(100000)
		if c.Quota != nil {
			quota = limit(*c.Quota, 1)
		}
		if c.Period != nil && *c.Period != 0 {
			period = *c.Period
		}
		add("cpu.max", fmt.Sprintf("%s %d", quota, period))
	}
	if c.Burst != nil {
		add("cpu.max.burst", strconv.FormatUint(*c.Burst, 10))
	}
	if c.Idle != nil {
		add("cpu.idle", strconv.FormatInt(*c.Idle, 10))
	}
	if c.Cpus != "" {
		add("cpuset.cpus", c.Cpus)
	}
	if c.Mems != "" {
		add("cpuset.mems", c.Mems)
	}
}

func blockIO(b *specs.LinuxBlockIO, add func(file, value string)) {
	if b.Weight != nil && *b.Weight != 0 {
		// 10…1000 to 1…10000.
		add("io.weight", fmt.Sprintf("default %d", 1+(uint64(*b.Weight)-10)*9999/990))
	}
	for _, t := range []struct {
		key  string
		list []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.list {
			add("io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, t.key, d.Rate))
		}
	}
}

// An IO bounds what goes to and from a disk, per second; 0: not.
type IO struct{ ReadBytes, WriteBytes, Reads, Writes uint64 }

// SetIO bounds what the group reads and writes of the disk with a device number.
func (g *Group) SetIO(disk uint64, l IO) error { return g.write("io.max", ioMax(disk, l)) }

func ioMax(disk uint64, l IO) string {
	s := fmt.Sprintf("%d:%d", unix.Major(disk), unix.Minor(disk))
	for _, m := range []struct {
		key   string
		value uint64
	}{{"rbps", l.ReadBytes}, {"wbps", l.WriteBytes}, {"riops", l.Reads}, {"wiops", l.Writes}} {
		value := "max"
		if m.value != 0 {
			value = strconv.FormatUint(m.value, 10)
		}
		s += " " + m.key + "=" + value
	}
	return s
}
