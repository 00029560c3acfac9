package cli

import (
	"bufio"
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/stdio"
)

func newLogs(a *app) *cobra.Command {
	c := command("logs [OPTIONS] CONTAINER", "Fetch the logs of a container", args(1, 1),
		"hyper container logs", "hyper logs")
	o := moby.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}
	c.Flags().BoolVar(&o.Details, "details", false, "Show extra details provided to logs")
	c.Flags().BoolVarP(&o.Follow, "follow", "f", false, "Follow log output")
	c.Flags().StringVar(&o.Since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	c.Flags().StringVarP(&o.Tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	c.Flags().BoolVarP(&o.Timestamps, "timestamps", "t", false, "Show timestamps")
	c.Flags().StringVar(&o.Until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	c.ValidArgsFunction = a.completeContainers(1, anyState)
	c.RunE = run(func(ctx context.Context, args []string) error {
		o.Since, o.Until = pointInTime(o.Since), pointInTime(o.Until)
		return cannot(a.logs(ctx, args[0], o), "show the logs of %s", args[0])
	})
	return c
}

func (a *app) logs(ctx context.Context, name string, o moby.ContainerLogsOptions) error {
	c, err := a.api().ContainerInspect(ctx, name, moby.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	r, err := a.api().ContainerLogs(ctx, c.Container.ID, o)
	if err != nil {
		return err
	}
	defer r.Close()
	if c.Container.Config.Tty {
		return stdio.Copy(a.out, r)
	}
	return stdio.Demux(bufio.NewReaderSize(r, 64<<10), a.out, a.err)
}
