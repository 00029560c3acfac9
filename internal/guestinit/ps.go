package guestinit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Bounds of a process list: it must fit into a message of the wire.
const (
	maxProcesses = 4096
	maxArgs      = 4 << 10
	maxList      = wire.MaxMessage * 3 / 4
)

// Processes implements wire.GuestService.
func (s *Service) Processes(_ context.Context, r *wire.ProcessesRequest) (*wire.ProcessesResponse, error) {
	c, err := s.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	pids, err := c.group.PIDs()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "list processes: %v", err)
	}
	names := c.userNames()
	booted := bootTime()
	slices.Sort(pids)
	out := new(wire.ProcessesResponse)
	size := 0
	for _, pid := range pids[:min(len(pids), maxProcesses)] {
		p := readProcess(pid, booted)
		if p == nil {
			continue // it has ended
		}
		if p.User = names[int(p.Uid)]; p.User == "" {
			p.User = strconv.Itoa(int(p.Uid))
		}
		if size += 128; size < maxList {
			for _, a := range p.Args {
				size += len(a) + 4
			}
			out.Processes = append(out.Processes, p)
		}
	}
	return out, nil
}

// userNames maps numbers to names as the container's /etc/passwd does.
func (c *container) userNames() map[int]string {
	b, err := accounts(c.root, "/etc/passwd")
	if err != nil {
		return nil
	}
	users, _ := user.ParsePasswd(bytes.NewReader(b))
	names := map[int]string{}
	for _, u := range users {
		if names[u.Uid] == "" {
			names[u.Uid] = u.Name
		}
	}
	return names
}

// bootTime is when the kernel started, in Unix nanoseconds.
func bootTime() int64 {
	var up unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
	return now() - up.Nano()
}

// readProcess reads /proc/PID (proc_pid_stat(5), proc_pid_status(5)).
func readProcess(pid int, booted int64) *wire.Process {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return nil
	}
	s, end := string(stat), bytes.LastIndexByte(stat, ')')
	_, name, _ := strings.Cut(s[:max(end, 0)], "(")
	f := strings.Fields(s[end+1:])
	if end < 0 || len(f) < 22 {
		return nil
	}
	num := func(field int) uint64 { n, _ := strconv.ParseUint(f[field-3], 10, 64); return n }
	p := &wire.Process{
		Pid: uint32(pid), Ppid: uint32(num(4)), State: f[0], Tty: ttyName(num(7)),
		CpuNanos:       (num(14) + num(15)) * tick,
		StartedAtNanos: booted + int64(num(22)*tick),
		VsizeBytes:     num(23), RssBytes: num(24) * uint64(os.Getpagesize()),
	}
	readStatus(dir, p)
	p.Args = readArgs(dir)
	if len(p.Args) == 0 {
		p.Args = []string{"[" + name + "]"}
	}
	return p
}

func readStatus(dir string, p *wire.Process) {
	b, _ := os.ReadFile(dir + "status")
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		f := strings.Fields(v)
		if len(f) == 0 {
			continue
		}
		switch k {
		case "Uid":
			n, _ := strconv.ParseUint(f[0], 10, 32)
			p.Uid = uint32(n)
		case "NSpid":
			n, _ := strconv.ParseUint(f[len(f)-1], 10, 32)
			p.ContainerPid = uint32(n)
		}
	}
}

func readArgs(dir string) []string {
	file, err := os.Open(dir + "cmdline")
	if err != nil {
		return nil
	}
	defer file.Close()
	b, _ := io.ReadAll(io.LimitReader(file, maxArgs))
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.ToValidUTF8(string(b), "?"), "\x00")
}

// ttyName names a terminal as ps does.
func ttyName(dev uint64) string {
	major, minor := unix.Major(dev), unix.Minor(dev)
	if major >= 136 && major <= 143 { // Unix98 terminals
		return fmt.Sprintf("pts/%d", (major-136)<<20|minor)
	}
	return "?"
}
