package pod

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// impatient makes a guest that does not answer be given up soon.
func impatient(t *testing.T) {
	kill, answer := killTimeout, answerTimeout
	killTimeout, answerTimeout = 300*time.Millisecond, 300*time.Millisecond
	t.Cleanup(func() { killTimeout, answerTimeout = kill, answer })
}

// within fails the test when f does not return soon.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal(what + " hangs")
	}
}

// stop freezes the guest's CPUs, so that nothing of it answers.
func (b *bench) stop(id string) {
	b.t.Helper()
	r, err := b.set.mustFind(b.t, id).running()
	if err == nil {
		err = r.vm.vm.Pause(b.t.Context())
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// A guest that never answers a new hyperd neither holds that up nor keeps its
// container from being listed, stopped and removed.
func TestAdoptWhatDoesNotAnswer(t *testing.T) {
	impatient(t)
	b := newBench(t)
	sp := sh("cat")
	sp.Stdin = true
	id := b.start(sp)
	b.stop(id)
	within(t, "end of hyperd", b.down)
	within(t, "start of hyperd", b.up)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	attached := make(chan struct{})
	pr, _ := io.Pipe()
	go b.set.Attach(ctx, id, AttachOptions{Stdin: pr, Stdout: io.Discard, Stream: true, Attached: func() { close(attached) }}) //nolint:errcheck // ends with the test
	<-attached
	time.Sleep(50 * time.Millisecond) // it opens the input
	within(t, "list", func() { b.set.List(Filter{}) })
	within(t, "removal", func() {
		if err := b.set.Remove(t.Context(), id, true); err != nil {
			t.Error(err)
		}
	})
}

// Nor does it while it is asked to pause or resume.
func TestPauseOfWhatDoesNotAnswer(t *testing.T) {
	impatient(t)
	b := newBench(t)
	running, paused := b.start(sh("sleep 1000")), b.start(sh("sleep 1000"))
	if err := b.set.Pause(t.Context(), paused); err != nil {
		t.Fatal(err)
	}
	b.stop(running)
	b.stop(paused)
	within(t, "pause", func() {
		if err := b.set.Pause(t.Context(), running); err == nil {
			t.Error("paused what does not answer")
		}
	})
	zero := 0
	within(t, "stop of what is paused", func() {
		if err := b.set.Stop(t.Context(), paused, "", &zero); err != nil {
			t.Error(err)
		}
	})
}

// A VM that stops by itself while its guest is being told what to do: its
// connection stays open, as QEMU's does.
func TestGuestThatDiesWhileConfigured(t *testing.T) {
	b := newBench(t)
	b.driver.Guest = func(conn net.Conn, _ io.Writer, _ vmm.Config) vmm.Exit {
		s, err := wire.ServeLink(conn).Accept()
		if err == nil {
			io.ReadFull(s, make([]byte, 64)) //nolint:errcheck // a call has begun
		}
		return vmm.Exit{Reason: vmm.ExitPanic}
	}
	id := b.create(sh("true"))
	within(t, "start", func() {
		if err := b.set.Start(t.Context(), id); err == nil {
			t.Error("started")
		}
	})
	b.driver.Guest = serveFakeGuest
}

// The end of hyperd does not wait for a client that reads nothing.
func TestEndWithStuckClient(t *testing.T) {
	b := newBench(t)
	id := b.create(sh("yes"))
	pr, pw := io.Pipe()
	attached := make(chan struct{})
	go b.set.Attach(t.Context(), id, AttachOptions{Stdout: pw, Stream: true, Attached: func() { close(attached) }}) //nolint:errcheck // ends with the test
	<-attached
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // the queue fills
	within(t, "end of hyperd", b.down)
	pr.Close()
	b.up()
}

type unadoptable struct{ *vmmtest.Fake }

func (unadoptable) Adopt(context.Context, vmm.Handle) (vmm.VM, error) {
	return nil, errors.New("no answer")
}

// A VM that can't be adopted is ended: it would hold the container's disk for
// good. Not so when hyperd itself was told to end meanwhile.
func TestAdoptWhatCantBe(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("sleep 1000"))
	r, err := b.set.mustFind(t, id).running()
	if err != nil {
		t.Fatal(err)
	}
	b.set.cfg.Driver = unadoptable{b.driver}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.set.adopted(ctx, r.vm.rec); err == nil || b.driver.VMs() != 1 {
		t.Errorf("told to end: %v, %d VMs", err, b.driver.VMs())
	}
	if vm, err := b.set.adopted(t.Context(), r.vm.rec); vm != nil || err != nil || b.driver.VMs() != 0 {
		t.Errorf("%v, %v, %d VMs", vm, err, b.driver.VMs())
	}
	b.wait(id)
}
