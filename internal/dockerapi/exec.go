package dockerapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"

	"github.com/hyper-run/hyper/internal/pod"
)

// An execRecord is what this edge keeps with an exec.
type execRecord struct {
	DetachKeys string `json:"detachKeys,omitempty"`
}

func (a *api) createExec(c *call) error {
	var req container.ExecCreateRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	if len(req.Cmd) == 0 {
		return invalid("No exec command specified")
	}
	if _, err := detachKeys(req.DetachKeys, true); err != nil {
		return err
	}
	edge, err := json.Marshal(execRecord{req.DetachKeys})
	if err != nil {
		return fmt.Errorf("record request: %w", err)
	}
	s := pod.ExecSpec{
		Args: req.Cmd, Env: req.Env, Dir: req.WorkingDir, User: req.User, TTY: req.Tty, Privileged: req.Privileged,
		Stdin: req.AttachStdin, Stdout: req.AttachStdout, Stderr: req.AttachStderr, Edge: edge,
	}
	if req.ConsoleSize != nil && !c.before(42) {
		s.ConsoleSize = *req.ConsoleSize
	}
	id, err := a.Containers.CreateExec(c.ctx(), c.name, s)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, container.ExecCreateResponse{ID: id})
}

func (a *api) startExec(c *call) error {
	var req container.ExecStartRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	e, err := a.Containers.GetExec(c.name)
	if err != nil {
		return err
	}
	switch {
	case e.Running:
		return conflict("exec command %s is already running", e.ID)
	case e.Started:
		return conflict("exec command %s has already run", e.ID)
	}
	if req.Detach {
		if err := a.Containers.StartExec(c.ctx(), e.ID, nil); err != nil {
			return startError(err)
		}
		c.begin("", http.StatusOK)
		return nil
	}
	return a.runExec(c, e, req)
}

// runExec carries the stdio of an exec. As with Docker the connection is taken
// over first: why a start failed is read as error output, its code by inspect.
func (a *api) runExec(c *call, e pod.Exec, req container.ExecStartRequest) error {
	var edge execRecord
	_ = json.Unmarshal(e.Spec.Edge, &edge) // without one there are the default keys
	keys, err := detachKeys(edge.DetachKeys, e.Spec.TTY)
	if err != nil {
		return err
	}
	s, ctx := newSession(c, !e.Spec.TTY, keys)
	defer s.finish()
	if err := s.open(); err != nil {
		return err
	}
	var resizing sync.WaitGroup
	defer resizing.Wait()
	o := &pod.AttachOptions{Stream: true}
	if size := req.ConsoleSize; size != nil && e.Spec.TTY && *size != e.Spec.ConsoleSize && !c.before(42) {
		o.Attached = func() {
			resizing.Go(func() { _ = a.Containers.ResizeExec(ctx, e.ID, size[0], size[1]) })
		}
	}
	if e.Spec.Stdin {
		o.Stdin = s.stdin
	}
	if e.Spec.Stdout {
		o.Stdout = s.output(stdcopy.Stdout)
	}
	if e.Spec.Stderr {
		o.Stderr = s.output(stdcopy.Stderr)
	}
	if err := a.Containers.StartExec(ctx, e.ID, o); err != nil && !ended(err) {
		fmt.Fprintf(s.output(stdcopy.Stderr), "%v\r\n", err)
	}
	return nil
}

func (a *api) resizeExec(c *call) error {
	h, w, err := c.window()
	if err != nil {
		return err
	}
	if err := a.Containers.ResizeExec(c.ctx(), c.name, h, w); err != nil {
		return err
	}
	c.begin("", http.StatusOK)
	return nil
}

func (a *api) inspectExec(c *call) error {
	e, err := a.Containers.GetExec(c.name)
	if err != nil {
		return err
	}
	var edge execRecord
	_ = json.Unmarshal(e.Spec.Edge, &edge)
	keys, _ := detachKeys(edge.DetachKeys, edge.DetachKeys != "")
	out := container.ExecInspectResponse{
		ID: e.ID, Running: e.Running, ExitCode: e.ExitCode, ContainerID: e.ContainerID, Pid: int(e.PID),
		OpenStdin: e.Spec.Stdin, OpenStdout: e.Spec.Stdout, OpenStderr: e.Spec.Stderr, DetachKeys: keys,
		ProcessConfig: &container.ExecProcessConfig{Tty: e.Spec.TTY, Privileged: &e.Spec.Privileged, User: e.Spec.User},
	}
	if len(e.Spec.Args) > 0 {
		out.ProcessConfig.Entrypoint, out.ProcessConfig.Arguments = e.Spec.Args[0], append([]string{}, e.Spec.Args[1:]...)
	}
	return c.json(http.StatusOK, out)
}
