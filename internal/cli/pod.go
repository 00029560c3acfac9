package cli

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/runflags"
)

func newPod(a *app) *cobra.Command {
	c := group("pod", "Manage pods: containers that share one VM",
		newPodConsole(a), newPodCreate(a), newPodExec(a), newPodGenerate(a), newPodInspect(a), newPodKill(a), newPodLogs(a), newPodLs(a),
		newPodPause(a), newPodPs(a), newPodRestart(a), newPodRm(a), newPodRun(a), newPodStart(a), newPodStats(a), newPodStop(a), newPodTop(a),
		newPodUnpause(a), newPodUpdate(a),
	)
	c.Long = "The containers of a pod share its network and shared memory; each has its own files and processes.\n\n" +
		"  hyper pod create --name shop\n  hyper run -d --pod shop --name db postgres\n  hyper run -d --pod shop --name web nginx\n  hyper pod ps shop"
	return c
}

// waitTimeout is how long --wait waits, seconds.
const waitTimeout = 300

func newPodStart(a *app) *cobra.Command {
	c := command("start [OPTIONS] POD [POD...]", "Start one or more pods and their containers", args(1, -1))
	wait := c.Flags().Bool("wait", false, "Return when all containers are ready, or one never will be")
	timeout := c.Flags().Int("wait-timeout", waitTimeout, "Seconds to wait with --wait, 0 for ever")
	c.ValidArgsFunction = a.completePods(-1, stoppedPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "start pod", args, func(ctx context.Context, name string) error { return a.api().StartPod(ctx, name, *wait, *timeout) })
	})
	return c
}

func newPodStop(a *app) *cobra.Command {
	c := command("stop [OPTIONS] POD [POD...]", "Stop one or more pods; they keep their disks, names and addresses", args(1, -1))
	timeout := podTimeout(c)
	c.ValidArgsFunction = a.completePods(-1, runningPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "stop pod", args, func(ctx context.Context, name string) error { return a.api().StopPod(ctx, name, timeout()) })
	})
	return c
}

func newPodRestart(a *app) *cobra.Command {
	c := command("restart [OPTIONS] POD [POD...]", "Restart one or more pods", args(1, -1))
	timeout := podTimeout(c)
	c.ValidArgsFunction = a.completePods(-1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "restart pod", args, func(ctx context.Context, name string) error {
			return a.api().RestartPod(ctx, name, timeout())
		})
	})
	return c
}

// podTimeout adds the flag that says how long stopping may take. Nil: as long
// as the containers' own timeouts.
func podTimeout(c *cobra.Command) func() *int {
	seconds := c.Flags().IntP("timeout", "t", 0, "Seconds to wait before killing the containers (default: their own)")
	return func() *int {
		if c.Flags().Changed("timeout") {
			return seconds
		}
		return nil
	}
}

func newPodKill(a *app) *cobra.Command {
	c := command("kill [OPTIONS] POD [POD...]", "Send a signal to all containers of one or more pods", args(1, -1))
	signal := c.Flags().StringP("signal", "s", "", "Signal to send to the containers (default KILL)")
	c.ValidArgsFunction = a.completePods(-1, runningPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "kill pod", args, func(ctx context.Context, name string) error { return a.api().KillPod(ctx, name, *signal) })
	})
	return c
}

func newPodPause(a *app) *cobra.Command {
	c := command("pause POD [POD...]", "Pause one or more pods: their VMs stand still", args(1, -1))
	c.ValidArgsFunction = a.completePods(-1, runningPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "pause pod", args, a.api().PausePod)
	})
	return c
}

func newPodUnpause(a *app) *cobra.Command {
	c := command("unpause POD [POD...]", "Let paused pods go on", args(1, -1))
	c.ValidArgsFunction = a.completePods(-1, pausedPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "unpause pod", args, a.api().UnpausePod)
	})
	return c
}

func newPodRm(a *app) *cobra.Command {
	c := as(command("rm [OPTIONS] POD [POD...]", "Remove one or more pods and their containers", args(1, -1),
		"hyper pod rm, hyper pod remove"), "rm", "remove")
	force := c.Flags().BoolP("force", "f", false, "Also pods that run (their containers get SIGKILL)")
	c.ValidArgsFunction = a.completePods(-1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "remove pod", args, func(ctx context.Context, name string) error {
			err := a.api().RemovePod(ctx, name, *force)
			if *force && errdefs.IsNotFound(err) {
				return errSkip
			}
			return err
		})
	})
	return c
}

func newPodUpdate(a *app) *cobra.Command {
	c := command("update [OPTIONS] POD [POD...]", "Change the size of one or more pods, also while they run", args(1, -1))
	c.Long = "  hyper pod update --memory 1g --cpus 2 shop"
	flags := runflags.AddPodUpdate(c.Flags())
	c.ValidArgsFunction = a.completePods(-1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		req, err := flags.Request()
		if err != nil {
			return cannot(err, "update")
		}
		return a.each(ctx, "update pod", args, func(ctx context.Context, name string) error { return a.api().UpdatePod(ctx, name, req) })
	})
	return c
}

func newPodConsole(a *app) *cobra.Command {
	c := command("console POD", "Print the last lines of the console of a pod's kernel", args(1, 1))
	c.ValidArgsFunction = a.completePods(1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		text, err := a.api().PodConsole(ctx, args[0])
		if err == nil {
			_, err = a.out.Write(text)
		}
		return cannot(err, "show the console of pod %s", args[0])
	})
	return c
}

func newPodGenerate(a *app) *cobra.Command {
	c := command("generate POD", "Print a pod as a file that 'hyper pod run -f' and Kubernetes take", args(1, 1))
	c.Long = "  hyper pod generate shop > shop.yaml"
	c.ValidArgsFunction = a.completePods(1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		yaml, err := a.api().GeneratePod(ctx, args[0])
		if err == nil {
			_, err = a.out.Write(yaml)
		}
		return cannot(err, "generate a file of pod %s", args[0])
	})
	return c
}

// mainContainer is the first container of a pod that is neither to prepare
// nor to help, or the one with a name.
func mainContainer(p api.Pod, name string) (api.PodContainer, error) {
	for _, c := range p.Containers {
		if name == "" && c.Role == "main" || name != "" && (c.Name == name || c.ID == name) {
			return c, nil
		}
	}
	if name != "" {
		return api.PodContainer{}, fmt.Errorf("it has no container %s", name)
	}
	return api.PodContainer{}, hinted{fmt.Errorf("it has no containers"), fmt.Sprintf("'hyper run --pod %s' adds one, 'hyper pod exec --vm' needs none", p.Name)}
}
