package guesttest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Processes implements wire.GuestService.
func (g *Guest) Processes(_ context.Context, r *wire.ProcessesRequest) (*wire.ProcessesResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, err := g.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	return &wire.ProcessesResponse{Processes: c.processes()}, nil
}

// Stats implements wire.GuestService.
func (g *Guest) Stats(_ context.Context, r *wire.StatsRequest) (*wire.StatsResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := []*container{g.containers[r.ContainerId]}
	if r.ContainerId == "" {
		of = slices.Collect(maps.Values(g.containers))
	} else if of[0] == nil {
		return nil, status.Errorf(codes.NotFound, "no container %s", r.ContainerId)
	}
	s := &wire.StatsResponse{ReadAtNanos: time.Now().UnixNano(), OnlineCpus: 1, MemoryLimitBytes: 128 << 20,
		SystemCpuNanos: uint64(time.Since(g.started))}
	for _, c := range of {
		for _, p := range c.processes() {
			s.Pids++
			s.CpuUsageNanos += p.CpuNanos
			s.CpuUserNanos += p.CpuNanos
			s.MemoryBytes += p.RssBytes
		}
	}
	return s, nil
}

const tick = time.Second / 100 // USER_HZ

// processes lists what runs in the sessions that the container started.
func (c *container) processes() []*wire.Process {
	var list []*wire.Process
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (comm) state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime …
		open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
		f := strings.Fields(string(b[end+1:]))
		field := func(n int) uint64 { v, _ := strconv.ParseUint(f[n-3], 10, 64); return v }
		if !c.groups[int(field(6))] {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		args := []string{fmt.Sprintf("[%s]", b[open+1:end])}
		if cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline")); len(cmdline) > 0 {
			args = strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		}
		list = append(list, &wire.Process{Pid: uint32(pid), Ppid: uint32(field(4)), User: "root", State: f[0],
			StartedAtNanos: time.Now().UnixNano(), CpuNanos: (field(14) + field(15)) * uint64(tick),
			VsizeBytes: field(23), RssBytes: field(24) * 4096, Tty: "?", Args: args, ContainerPid: uint32(pid)})
	}
	return list
}
