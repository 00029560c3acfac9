package pod

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

var conflict = errdefs.ErrConflict

const defaultStopTimeout = 10 // seconds, as Docker

// killTimeout is how long a guest may take to kill a process before its
// whole VM is ended.
var killTimeout = 10 * time.Second

// Stop asks the container's process to end, and ends it when it does not.
func (s *Set) Stop(ctx context.Context, ref, sig string, timeout *int) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	r, err := c.stopping()
	if err != nil {
		return err
	}
	r.end(CauseStopped, "")
	if err := r.stop(ctx, sig, timeout); err != nil {
		return err
	}
	s.publish(c, "stop")
	return nil
}

func (r *run) stop(ctx context.Context, sig string, timeout *int) error {
	sp := r.c.spec()
	if sig == "" {
		sig = sp.StopSignal
	}
	num, err := parseSignal(sig, unix.SIGTERM)
	if err != nil {
		return err
	}
	seconds := defaultStopTimeout
	if timeout != nil {
		seconds = *timeout
	} else if sp.StopTimeout != nil {
		seconds = *sp.StopTimeout
	} else if t := r.c.pod.record().Spec.StopTimeout; t != nil {
		seconds = *t
	}
	r.thaw(ctx)
	left := r.preStop(ctx, time.Duration(seconds)*time.Second)
	if err := r.signal(ctx, num); err != nil {
		r.c.set.log.Warn("stop signal", "container", r.c.id, "err", err)
	}
	if seconds < 0 {
		left = -1 // for ever
	}
	if err := r.await(ctx, left); !errors.Is(err, errStuck) {
		return err
	}
	return r.kill(ctx)
}

// setStopped says that somebody stopped the container, so that its policy does
// not start it again.
func (c *container) setStopped() error {
	starts := c.pod.record().Starts
	c.mu.Lock()
	was := c.rec.Stopped && c.rec.StoppedIn == starts
	c.rec.Stopped, c.rec.StoppedIn = true, starts
	c.mu.Unlock()
	if was || c.spec().AutoRemove {
		return nil
	}
	c.pod.wake()
	return c.save()
}

// stopping is setStopped, and returns the container's run. A start that is under way is waited for.
func (c *container) stopping() (*run, error) {
	r, err := c.running()
	if err != nil {
		c.op.Lock()
		defer c.op.Unlock()
		r, err = c.running()
	}
	if serr := c.setStopped(); serr != nil {
		return nil, serr
	}
	if err != nil {
		return nil, textError{"container " + c.id + " is already stopped", errdefs.ErrNotModified}
	}
	return r, nil
}

// thaw resumes what is paused: a frozen process can't act on a signal. That
// it can't be done must not keep the container from being ended.
func (r *run) thaw(ctx context.Context) {
	if r.c.view().Status != StatusPaused {
		return
	}
	if err := r.c.set.Resume(ctx, r.c.id); err != nil && !errdefs.IsConflict(err) {
		r.c.set.log.Warn("resume to stop", "container", r.c.id, "err", err)
	}
}

// errStuck says that a process did not end in time.
var errStuck = errors.New("the process did not end in time")

// await waits until the run is over, or fails with errStuck if its process has not ended within
// timeout; negative: never. What is to be done after that takes a bounded time.
func (r *run) await(ctx context.Context, timeout time.Duration) error {
	var expired <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		expired = t.C
	}
	exited := r.dead
	for {
		select {
		case <-r.ended:
			return nil
		case <-exited:
			exited, expired = nil, nil
		case <-expired:
			return errStuck
		case <-r.released:
			if isClosed(r.ended) {
				return nil
			}
			return fmt.Errorf("hyperd ends: %w", errdefs.ErrUnavailable)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// patience is how often a guest that does not kill a process is asked whether it lives, while others
// run in it. It may have a lot to do.
const patience = 2

// kill ends the process for certain: with SIGKILL, or its VM if the guest
// does not obey in time.
func (r *run) kill(ctx context.Context) error {
	if err := r.signal(ctx, unix.SIGKILL); err != nil {
		r.c.set.log.Warn("kill signal", "container", r.c.id, "err", err)
	}
	err := r.await(ctx, killTimeout)
	for n := 0; n < patience && errors.Is(err, errStuck) && len(r.others()) > 0 && r.vm.answers(ctx); n++ {
		err = r.await(ctx, killTimeout)
	}
	if !errors.Is(err, errStuck) {
		return err
	}
	r.c.set.log.Error("the guest did not kill its process: ending the VM", "container", r.c.id)
	for _, other := range r.others() {
		other.end(CauseVMM, fmt.Sprintf("the guest did not end container %s when it was told to, so its virtual machine was ended", r.c.name()))
	}
	if err := r.vm.vm.Kill(ctx); err != nil {
		return err
	}
	return r.await(ctx, -1)
}

// others are the runs of other containers in the same VM.
func (r *run) others() (all []*run) {
	for _, c := range r.c.set.members(r.c.podID) {
		if other, err := c.running(); err == nil && other != r && other.vm == r.vm {
			all = append(all, other)
		}
	}
	return all
}

// answers says whether the guest is well enough to answer.
func (m *machine) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	g, err := m.guest(ctx)
	if err == nil {
		_, err = g.Info(ctx, &wire.InfoRequest{})
	}
	return err == nil
}

func (r *run) signal(ctx context.Context, sig unix.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	_, err = g.Signal(ctx, &wire.SignalRequest{ContainerId: r.c.id, Signal: uint32(sig)})
	if errdefs.IsNotFound(err) || isClosed(r.dead) {
		return nil // it has just ended
	}
	return err
}

// parseSignal takes a name, with or without SIG, or a number of signal(7).
func parseSignal(text string, def unix.Signal) (unix.Signal, error) {
	if text == "" {
		return def, nil
	}
	const lastSignal = 64 // SIGRTMAX
	n, err := strconv.Atoi(text)
	if err == nil && n > 0 && n <= lastSignal {
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if sig := unix.SignalNum("SIG" + name); sig != 0 && err != nil {
		return sig, nil
	}
	const rtMin = 34 // of glibc
	if off, ok := strings.CutPrefix(name, "RTMIN"); ok {
		if n, err := strconv.Atoi(strings.TrimPrefix(off, "+")); err == nil && n >= 0 && n <= lastSignal-rtMin {
			return unix.Signal(rtMin + n), nil
		} else if off == "" {
			return rtMin, nil
		}
	}
	return 0, textError{"invalid signal: " + text, errdefs.ErrInvalidArgument}
}

// Kill sends a signal, SIGKILL by default, to the container's process.
func (s *Set) Kill(ctx context.Context, ref, sig string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	num, err := parseSignal(sig, unix.SIGKILL)
	if err != nil {
		return err
	}
	r, err := c.running()
	if err != nil {
		return textError{"cannot kill container: " + ref + ": " + err.Error(), conflict}
	}
	if stop, err := parseSignal(c.spec().StopSignal, unix.SIGTERM); num == unix.SIGKILL || err == nil && num == stop {
		if err := c.setStopped(); err != nil {
			return err
		}
		r.end(CauseStopped, sentTo(int(num)))
	}
	r.sent(num)
	if num == unix.SIGKILL {
		r.thaw(ctx)
		err = r.kill(ctx)
	} else {
		err = r.signal(ctx, num)
	}
	if err != nil {
		return err
	}
	s.publish(c, "kill", "signal", strconv.Itoa(int(num)))
	return nil
}

// Restart stops the container if it runs, and starts it.
func (s *Set) Restart(ctx context.Context, ref, sig string, timeout *int) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if c.spec().AutoRemove {
		if _, err := c.running(); err == nil {
			return fmt.Errorf("restart container %s: it removes itself when it stops: %w", c.name(), conflict)
		}
	}
	err = c.busily(func() error {
		if err := s.Stop(ctx, c.id, sig, timeout); err != nil && !errdefs.IsNotModified(err) {
			return err
		}
		return s.Start(ctx, c.id)
	})
	if err == nil {
		s.publish(c, "restart")
	}
	return err
}

// Remove deletes a container that does not run; with force it is killed first.
func (s *Set) Remove(ctx context.Context, ref string, force bool) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if !force && c.isRestarting() {
		return textError{fmt.Sprintf("cannot remove container \"%s\": container is restarting: stop the container before removing or force remove", c.name()), conflict}
	}
	for {
		done, err := c.removeStopped(ctx)
		if done {
			return err
		}
		r, err := c.running()
		if err != nil {
			continue // it has just ended
		}
		if !force {
			return textError{fmt.Sprintf("cannot remove container \"%s\": container is %s: stop the container before removing or force remove", c.name(), c.view().Status), conflict}
		}
		if err := s.Kill(ctx, c.id, "KILL"); err != nil && !r.isEnded() {
			return err
		}
	}
}

// removeStopped removes the container unless it runs, or does once a start
// that is under way is done.
func (c *container) removeStopped(ctx context.Context) (done bool, err error) {
	if _, err := c.running(); err == nil {
		return false, nil
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.isRemoved() {
		return true, nil // by --rm, or by somebody else meanwhile
	}
	if _, err := c.running(); err == nil {
		return false, nil
	}
	ctx = context.WithoutCancel(ctx)
	if err := c.pod.letGoOf(ctx, c); err != nil { // its file goes all the same, what is in it when the VM does
		c.set.log.Warn("take a container out of its VM", "container", c.id, "err", err)
	}
	return true, c.removeLocked(ctx)
}

// removeLocked deletes the container. Precondition: c.op is held, and it does
// not run.
func (c *container) removeLocked(context.Context) error {
	c.mu.Lock()
	before := c.rec.Status
	err := c.transitionLocked(StatusRemoving)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	p := c.pod
	if err := c.unmake(); err != nil {
		c.mu.Lock()
		c.rec.Error = "remove: " + err.Error()
		terr := c.transitionLocked(before)
		c.notifyLocked(ExitStatus{Code: c.rec.ExitCode, Error: c.rec.text()}, WaitRemoved)
		c.mu.Unlock()
		return errors.Join(fmt.Errorf("remove container %s: %w", c.name(), err), terr)
	}
	c.set.publish(c, "destroy")
	p.mu.Lock()
	gone := p.gone
	p.mu.Unlock()
	if gone != nil {
		<-gone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st := ExitStatus{Code: c.rec.ExitCode, Error: c.rec.text()}
	c.notifyLocked(st, WaitRemoved, WaitNextExit, WaitNotRunning)
	return nil
}
