package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newPodTop(a *app) *cobra.Command {
	c := command("top POD [ps OPTIONS]", "Display the running processes of all containers of a pod", args(1, -1))
	c.Flags().SetInterspersed(false)
	c.ValidArgsFunction = a.completePods(1, runningPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return cannot(a.podTop(ctx, args[0], args[1:]), "list the processes of pod %s", args[0])
	})
	return c
}

func (a *app) podTop(ctx context.Context, pod string, psArgs []string) error {
	p, err := a.api().Pod(ctx, pod)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 10, 1, 3, ' ', 0)
	titles := ""
	for _, c := range p.Containers {
		if c.Status != "running" && c.Status != "paused" {
			continue
		}
		res, err := a.api().ContainerTop(ctx, c.ID, moby.ContainerTopOptions{Arguments: psArgs})
		if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
			continue // it ended in between
		}
		if err != nil {
			return err
		}
		if titles == "" {
			titles = strings.Join(res.Titles, "\t")
			fmt.Fprintln(w, "CONTAINER\t"+titles)
		}
		for _, proc := range res.Processes {
			fmt.Fprintln(w, c.Name+"\t"+strings.Join(proc, "\t"))
		}
	}
	if titles == "" {
		return errors.New("none of its containers runs")
	}
	return w.Flush()
}
