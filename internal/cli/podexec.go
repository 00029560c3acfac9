package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/runflags"
)

type podExecFlags struct {
	*execFlags
	container, image string
	vm               bool
}

func newPodExec(a *app) *cobra.Command {
	c := command("exec [OPTIONS] POD COMMAND [ARG...]", "Execute a command in a container of a pod, or in its VM", args(2, -1))
	c.Long = "It runs in the pod's first main container. With --vm it runs outside any container, with all\n" +
		"of the VM in view and the tools of an image.\n\n  hyper pod exec -it shop sh\n  hyper pod exec -c db shop psql -l\n  hyper pod exec --vm shop dmesg"
	f := podExecFlags{execFlags: addExecFlags(c.Flags())}
	c.Flags().StringVarP(&f.container, "container", "c", "", "Container to execute the command in")
	c.Flags().BoolVar(&f.vm, "vm", false, "Execute it in the VM, outside any container")
	c.Flags().StringVar(&f.image, "image", toolsImage, "With --vm: image that has the tools; it is pulled when it is missing")
	c.ValidArgsFunction = a.completePods(1, runningPod)
	a.completeFlag(c, "image", a.completeImages(-1))
	c.RunE = func(cmd *cobra.Command, args []string) error {
		err := f.check(cmd.Flags().Changed("image"))
		if err == nil {
			err = a.podExec(cmd.Context(), &f, args[0], args[1:])
		}
		if e := (*exitError)(nil); errors.As(err, &e) {
			return err
		}
		return cannot(err, "exec in pod %s", args[0])
	}
	return c
}

func (f *podExecFlags) check(image bool) error {
	switch {
	case f.vm && f.container != "":
		return errors.New("--vm and --container exclude each other")
	case !f.vm && image:
		return errors.New("--image needs --vm")
	}
	return nil
}

func (a *app) podExec(ctx context.Context, f *podExecFlags, pod string, args []string) error {
	p, err := a.api().Pod(ctx, pod)
	if err != nil {
		return err
	}
	if f.vm {
		return a.vmExec(ctx, f, p, args)
	}
	c, err := mainContainer(p, f.container)
	if err != nil {
		return err
	}
	return a.exec(ctx, f.execFlags, c.ID, args)
}

// vmExec runs a command in the PID namespace of a VM.
func (a *app) vmExec(ctx context.Context, f *podExecFlags, p api.Pod, args []string) error {
	if !runningPod(p.Status) {
		return hinted{fmt.Errorf("it is %s", p.Status), fmt.Sprintf("'hyper pod start %s' starts it", p.Name)}
	}
	env, err := runflags.ReadEnv(f.envFile, f.env)
	if err != nil {
		return fmt.Errorf("--env-file: %w", err)
	}
	return a.runTool(ctx, &tool{
		image: f.image, args: args, stdin: f.stdin, tty: f.tty, detach: f.detach, user: f.user, dir: f.workdir, env: env, keys: f.keys,
		host: container.HostConfig{PidMode: "vm", Privileged: true, Annotations: map[string]string{runflags.PodAnnotation: p.ID}},
	})
}
