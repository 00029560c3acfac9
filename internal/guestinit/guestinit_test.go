package guestinit_test

import (
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

func TestBoot(t *testing.T) {
	v := startVM(t)
	up := time.Since(v.started)
	info, err := v.c.Info(v.ctx(), &wire.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("answered after %v, kernel up for %v: %v", up.Round(time.Millisecond), time.Duration(info.UptimeNanos).Round(time.Millisecond), info)
	out, w := v.run(config{args: []string{"sh", "-c", "echo hello; echo err >&2; exit 42"}})
	if out != "hello\nerr\n" || w.ExitCode != 42 {
		t.Errorf("got %q, %v", out, w)
	}
	start := time.Now()
	if _, err := v.c.Shutdown(v.ctx(), &wire.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.exited:
		t.Logf("gone %v after Shutdown", time.Since(start).Round(time.Millisecond))
	case <-time.After(10 * time.Second):
		t.Error("the VM still runs")
	}
}
