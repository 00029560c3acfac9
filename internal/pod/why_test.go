package pod

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/vmm"
)

// Why a container ended is told as it was, not by what happened to it before.
func TestCauses(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		name, script string
		signals      []string // sent when it is ready
		want         Cause
		detail       string
	}{
		{"exit", "echo ready; read x; exit 3", nil, CauseExit, ""},
		{"signal", "echo ready; kill -SEGV $$", nil, CauseSignal, ""},
		{"sent", "echo ready; exec sleep 1000", []string{"USR2"}, CauseStopped, "signal 12 was sent"},
		{"sent, and not minded", "trap '' USR1; echo ready; sleep 0.3; exit 3", []string{"USR1"}, CauseExit, ""},
		{"sent, and ended by another", "trap '' USR1; echo ready; sleep 0.3; kill -SEGV $$", []string{"USR1"}, CauseSignal, ""},
		{"killed", "echo ready; sleep 1000", []string{"KILL"}, CauseStopped, "signal 9 was sent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := b.start(sh(tt.script))
			b.printed(id, "ready")
			for _, sig := range tt.signals {
				if err := b.set.Kill(t.Context(), id, sig); err != nil {
					t.Fatal(err)
				}
			}
			b.wait(id)
			if w, err := b.set.Why(t.Context(), id); err != nil || w.Cause != tt.want || !strings.Contains(w.Detail, tt.detail) {
				t.Errorf("%+v, %v", w, err)
			}
		})
	}
}

func TestOOMCauses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		st     *wire.WaitResponse
		reason End
		want   Cause
	}{
		{"it did not get over it", &wire.WaitResponse{ExitCode: 137, Signal: 9, OomKilled: true}, End{}, CauseOOM},
		{"it got over it", &wire.WaitResponse{OomKilled: true}, End{}, CauseExit},
		{"it was stopped later", &wire.WaitResponse{ExitCode: 143, OomKilled: true}, End{Cause: CauseStopped}, CauseStopped},
	} {
		tt.st.OomDetail = "killed \x1b[31mtail\nanon 8 KiB" + strings.Repeat("x", 1<<20)
		e := (&run{reason: tt.reason}).exited(tt.st)
		if e.Cause != tt.want || !e.OOMKilled || !strings.HasPrefix(e.Detail, "killed [31mtail\nanon 8 KiB") || len(e.Detail) > 8<<10 {
			t.Errorf("%s: %s, %.80q", tt.name, e.Cause, e.Detail)
		}
	}
}

// What is kept of a start that failed is one line, and the rest beside it.
func TestStartEnd(t *testing.T) {
	b := newBench(t)
	err := fmt.Errorf("start pod web: %w", errors.Join(&vmm.StartError{Err: errors.New("no answer"), Tried: "all", Stderr: "qemu: \x1b]0;x", Console: "Linux"}, errors.New("and more")))
	e := startEnd(err, b.set.newTrace("x", time.Now()))
	if e.Error != "start pod web: no answer; and more" || e.Detail != "all" || e.Stderr != "qemu: ]0;x" || e.Console != "Linux" || e.Stage == "" {
		t.Errorf("%+v", e)
	}
}
