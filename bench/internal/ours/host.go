package ours

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// HostLines say on what was measured, and how busy it is.
func HostLines(ctx context.Context, d *Daemon) ([]string, error) {
	info, err := d.Hyper(ctx, "info")
	if err != nil {
		return nil, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	lines := []string{
		fmt.Sprintf("%s, %d CPUs, load average before: %s", cpuModel(), runtime.NumCPU(), strings.Fields(string(load))[0]),
		"date: " + time.Now().UTC().Format(time.DateOnly),
	}
	for _, line := range strings.Split(info, "\n") {
		line = strings.TrimSpace(line)
		for _, name := range []string{"VMM:", "Accelerator:", "Guest kernel:"} {
			if strings.HasPrefix(line, name) {
				lines = append(lines, line)
			}
		}
		if strings.HasPrefix(line, "Accelerator: tcg") {
			lines = append(lines, "**TCG**: guests are emulated in software; with KVM all times of guests are far shorter")
		}
	}
	return lines, nil
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for _, line := range strings.Split(string(text), "\n") {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown CPU"
}
