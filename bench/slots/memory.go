package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// memory of a process in bytes, proc_pid_smaps(5).
type memory struct {
	private    int64 // pages that it alone has and has written
	guest      int64 // those among them that are the guest's memory
	pss        int64
	pageTables int64
}

func memoryOf(pid int) (memory, error) {
	smaps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return memory{}, err
	}
	defer smaps.Close()
	m, err := parseSmaps(smaps)
	if err != nil {
		return m, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(status)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "VmPTE:" {
			m.pageTables, err = kibibytes(words[1])
		}
	}
	return m, err
}

func parseSmaps(r io.Reader) (m memory, err error) {
	guest := false
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) < 2:
		case !strings.HasSuffix(words[0], ":"): // 55d0-55d1 r--p 0000 08:01 123 NAME
			guest = strings.Contains(lines.Text(), "memfd:"+memoryName)
		case words[0] == "Pss:" || words[0] == "Private_Dirty:":
			n, err := kibibytes(words[1])
			if err != nil {
				return m, err
			}
			if words[0] == "Pss:" {
				m.pss += n
				continue
			}
			m.private += n
			if guest {
				m.guest += n
			}
		}
	}
	return m, lines.Err()
}

func kibibytes(word string) (int64, error) {
	n, err := strconv.ParseInt(word, 10, 64)
	return n << 10, err
}

// hostLines say on what was measured.
func hostLines(ctx context.Context, s shape) ([]string, error) {
	version, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask QEMU for its version: %w", err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("%s, %d CPUs, Linux %s", cpuField(cpus, "model name"), strings.Count(string(cpus), "processor\t"), strings.TrimSpace(string(release))),
		first,
		"Accelerator: **TCG** (with KVM all times of guests are far shorter)",
		fmt.Sprintf("Templates: %d MiB, %d CPUs, %d slots, those of pmem with %d MiB each", s.memMiB, s.cpus, s.slots, s.slotMiB),
		"load average before: " + loadAverage(),
	}, nil
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if words := strings.Fields(string(text)); err == nil && len(words) > 2 {
		return strings.Join(words[:3], " ")
	}
	return "unknown"
}

// cpuField is a field of the first CPU in a /proc/cpuinfo, "" if it has none.
func cpuField(cpuinfo []byte, name string) string {
	for line := range strings.Lines(string(cpuinfo)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// hostTSCKHz is roughly the frequency of the host's time stamp counter, which
// is the guest's; roughly is enough, since no time is taken in the guest.
func hostTSCKHz() int {
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.Contains(cpuField(cpus, "flags"), "constant_tsc") {
		return 0
	}
	mhz, err := strconv.ParseFloat(cpuField(cpus, "cpu MHz"), 64)
	if err != nil {
		return 0
	}
	return int(mhz * 1000)
}
