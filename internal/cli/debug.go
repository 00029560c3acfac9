package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/runflags"
	"github.com/hyper-run/hyper/internal/cli/stdio"
)

// toolsImage is where tools come from unless the user says otherwise.
const toolsImage = "busybox"

func newDebug(a *app) *cobra.Command {
	c := command("debug [OPTIONS] CONTAINER [COMMAND] [ARG...]", "Run tools of another image beside a container, with its processes in view", args(1, -1))
	c.Long = "For containers whose image has no shell. The command runs in the same pod, with all\n" +
		"capabilities; the files of the container are in /proc/1/root.\n\n  hyper debug web\n  hyper debug --image alpine web ls -l /proc/1/root/etc"
	var image string
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&image, "image", toolsImage, "Image that has the tools; it is pulled when it is missing")
	c.ValidArgsFunction = a.completeContainers(1, running)
	a.completeFlag(c, "image", a.completeImages(-1))
	c.RunE = run(func(ctx context.Context, args []string) error {
		t, err := a.debugger(ctx, image, args)
		if err == nil {
			err = a.runTool(ctx, t)
		}
		if e := (*exitError)(nil); errors.As(err, &e) {
			return err
		}
		return withCode(exitRefused, cannot(err, "debug %s", args[0]))
	})
	return c
}

// debugger makes the tool that looks at a container.
func (a *app) debugger(ctx context.Context, image string, args []string) (*tool, error) {
	res, err := a.api().ContainerInspect(ctx, args[0], moby.ContainerInspectOptions{})
	if err != nil {
		return nil, err
	}
	target := res.Container
	if !target.State.Running {
		return nil, hinted{errors.New("it is not running"), fmt.Sprintf("'hyper why %s' says why, 'hyper start %[1]s' starts it", args[0])}
	}
	_, tty := stdio.Terminal(a.in)
	if tty {
		_, tty = stdio.Terminal(a.out)
	}
	fmt.Fprintf(a.err, "hint: the processes of %s are in view; unless it shares its PID namespace, its files are in /proc/1/root\n", args[0])
	mode := "container:" + target.ID
	var run []string // nil: what the image runs
	if len(args) > 1 {
		run = args[1:]
	}
	return &tool{
		image: image, args: run, stdin: true, tty: tty,
		host: container.HostConfig{PidMode: container.PidMode(mode), NetworkMode: container.NetworkMode(mode), CapAdd: []string{"ALL"}},
	}, nil
}

// A tool is a container that is there for one command.
type tool struct {
	image      string
	args       []string // nil: what the image runs
	stdin, tty bool
	detach     bool
	user, dir  string
	env        []string
	keys       string // that detach
	host       container.HostConfig
}

// runTool creates and runs a tool, and ends as it does. It is removed then.
func (a *app) runTool(ctx context.Context, t *tool) error {
	keys, err := stdio.DetachKeys(t.keys)
	if err != nil {
		return err
	}
	if err := a.checkTTY(t.stdin && !t.detach, t.tty); err != nil {
		return err
	}
	attached := !t.detach
	req := moby.ContainerCreateOptions{HostConfig: &t.host, Config: &container.Config{
		Image: t.image, Entrypoint: t.args, Env: t.env, User: t.user, WorkingDir: t.dir, Tty: t.tty,
		OpenStdin: t.stdin, StdinOnce: t.stdin && attached, AttachStdin: t.stdin && attached, AttachStdout: attached, AttachStderr: attached,
	}}
	req.HostConfig.AutoRemove = true
	if t.tty {
		h, w := stdio.ConsoleSize(a.out)
		req.HostConfig.ConsoleSize = [2]uint{h, w}
	}
	f := &runFlags{createFlags: &createFlags{pull: "missing", Flags: &runflags.Flags{}}, sigProxy: !t.tty, keys: t.keys}
	id, err := a.create(ctx, f.createFlags, req)
	if err != nil {
		return err
	}
	return a.startCreated(ctx, &created{f, id, req, keys}, id)
}
