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
	if err := c.setStopped(); err != nil {
		return err
	}
	r, err := c.running()
	if err != nil {
		return textError{"container " + c.id + " is already stopped", errdefs.ErrNotModified}
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
	var expired <-chan time.Time // a negative timeout waits for ever
	if seconds >= 0 {
		t := time.NewTimer(left)
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-r.ended:
		return nil
	case <-expired:
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.kill(ctx)
}

// setStopped says that somebody stopped the container, so that its policy does
// not start it again.
func (c *container) setStopped() error {
	c.mu.Lock()
	was := c.rec.Stopped
	c.rec.Stopped = true
	c.mu.Unlock()
	if was || c.spec().AutoRemove {
		return nil
	}
	c.pod.wake()
	return c.save()
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

// kill ends the process for certain: with SIGKILL, or its VM if the guest
// does not obey in time.
func (r *run) kill(ctx context.Context) error {
	if err := r.signal(ctx, unix.SIGKILL); err != nil {
		r.c.set.log.Warn("kill signal", "container", r.c.id, "err", err)
	}
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	}
	r.c.set.log.Error("the guest did not kill its process: ending the VM", "container", r.c.id)
	if err := r.vm.vm.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *run) signal(ctx context.Context, sig unix.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	_, err = g.Signal(ctx, &wire.SignalRequest{ContainerId: r.c.id, Signal: uint32(sig)})
	if errdefs.IsNotFound(err) {
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
	}
	r.end(CauseStopped, "signal "+strconv.Itoa(int(num))+" was sent to it")
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
	if err := s.Stop(ctx, c.id, sig, timeout); err != nil && !errdefs.IsNotModified(err) {
		return err
	}
	if err := s.Start(ctx, c.id); err != nil {
		return err
	}
	s.publish(c, "restart")
	return nil
}

// Remove deletes a container that does not run; with force it is killed first.
func (s *Set) Remove(ctx context.Context, ref string, force bool) error {
	c, err := s.find(ref)
	if err != nil {
		return err
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
	return true, c.removeLocked(context.WithoutCancel(ctx))
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
