package cli

import (
	"context"
	"errors"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/stdio"
)

func newStart(a *app) *cobra.Command {
	c := command("start [OPTIONS] CONTAINER [CONTAINER...]", "Start one or more stopped containers", args(1, -1),
		"hyper container start", "hyper start")
	var attach, stdin bool
	var keys string
	c.Flags().BoolVarP(&attach, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	c.Flags().StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	c.Flags().BoolVarP(&stdin, "interactive", "i", false, "Attach container's STDIN")
	c.ValidArgsFunction = a.completeContainers(-1, notRunning)
	c.RunE = run(func(ctx context.Context, args []string) error {
		if !attach && !stdin {
			return a.each(ctx, "start", args, func(ctx context.Context, name string) error {
				_, err := a.api().ContainerStart(ctx, name, moby.ContainerStartOptions{})
				return err
			})
		}
		if len(args) > 1 {
			return cannot(errors.New("only one container can be attached to"), "start")
		}
		return a.startAttached(ctx, args[0], keys, stdin)
	})
	return c
}

func (a *app) startAttached(ctx context.Context, name, keysText string, stdin bool) error {
	keys, err := stdio.DetachKeys(keysText)
	if err != nil {
		return cannot(err, "start %s", name)
	}
	res, err := a.api().ContainerInspect(ctx, name, moby.ContainerInspectOptions{})
	if err != nil {
		return cannot(err, "start %s", name)
	}
	c := res.Container
	stdin = stdin && c.Config.OpenStdin
	r := foreground{
		app: a, id: c.ID, action: "start " + name, sigProxy: !c.Config.Tty, keys: keys, keysText: keysText,
		tty: c.Config.Tty, stdin: stdin, stdout: true, stderr: true,
		autoRemove: c.HostConfig.AutoRemove, plainStartCode: true,
	}
	return r.run(ctx)
}
