package cli

import (
	"context"
	"errors"
	"fmt"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hyper-run/hyper/internal/cli/runflags"
	"github.com/hyper-run/hyper/internal/cli/stdio"
)

type execFlags struct {
	detach, stdin, tty, privileged bool
	keys, user, workdir            string
	env, envFile                   []string
}

func newExec(a *app) *cobra.Command {
	c := command("exec [OPTIONS] CONTAINER COMMAND [ARG...]", "Execute a command in a running container", args(2, -1),
		"hyper container exec", "hyper exec")
	f := addExecFlags(c.Flags())
	c.ValidArgsFunction = a.completeContainers(1, running)
	c.RunE = run(func(ctx context.Context, args []string) error {
		err := a.exec(ctx, f, args[0], args[1:])
		if e := (*exitError)(nil); errors.As(err, &e) {
			return err
		}
		return cannot(err, "exec in %s", args[0])
	})
	return c
}

func addExecFlags(fs *pflag.FlagSet) *execFlags {
	f := &execFlags{}
	fs.SetInterspersed(false)
	fs.BoolVarP(&f.detach, "detach", "d", false, "Detached mode: run command in the background")
	fs.StringVar(&f.keys, "detach-keys", "", "Override the key sequence for detaching a container")
	fs.VarP(runflags.EnvVar(&f.env), "env", "e", "Set environment variables")
	fs.StringArrayVar(&f.envFile, "env-file", nil, "Read in a file of environment variables")
	fs.BoolVarP(&f.stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.BoolVar(&f.privileged, "privileged", false, "Give extended privileges to the command")
	fs.BoolVarP(&f.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.StringVarP(&f.user, "user", "u", "", `Username or UID (format: "<name|uid>[:<group|gid>]")`)
	fs.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
	return f
}

func (a *app) exec(ctx context.Context, f *execFlags, container string, args []string) error {
	env, err := runflags.ReadEnv(f.envFile, f.env)
	if err != nil {
		return fmt.Errorf("--env-file: %w", err)
	}
	keys, err := stdio.DetachKeys(f.keys)
	if err != nil {
		return err
	}
	opts := moby.ExecCreateOptions{
		User: f.user, Privileged: f.privileged, TTY: f.tty, DetachKeys: f.keys, Env: env, WorkingDir: f.workdir, Cmd: args,
		AttachStdin: f.stdin && !f.detach, AttachStdout: !f.detach, AttachStderr: !f.detach,
	}
	if !f.detach {
		if err := a.checkTTY(opts.AttachStdin, f.tty); err != nil {
			return err
		}
	}
	if f.tty {
		opts.ConsoleSize.Height, opts.ConsoleSize.Width = stdio.ConsoleSize(a.out)
	}
	made, err := a.api().ExecCreate(ctx, container, opts)
	if err != nil {
		return err
	}
	if f.detach {
		_, err := a.api().ExecStart(ctx, made.ID, moby.ExecStartOptions{Detach: true, TTY: f.tty, ConsoleSize: opts.ConsoleSize})
		return err
	}
	return a.execAttached(ctx, made.ID, opts, keys)
}

// execAttached starts an exec with hyper's streams and ends as it does.
func (a *app) execAttached(ctx context.Context, id string, o moby.ExecCreateOptions, keys []byte) error {
	conn, err := a.api().ExecAttach(ctx, id, moby.ExecAttachOptions{TTY: o.TTY, ConsoleSize: o.ConsoleSize})
	if err != nil {
		return err
	}
	s := &stdio.Session{Conn: conn, TTY: o.TTY, Out: a.out, Keys: keys}
	if o.AttachStdin {
		s.In = a.in
	}
	if !o.TTY {
		s.Err = a.err
	}
	if o.TTY {
		defer a.followSize(ctx, o.ConsoleSize.Height, o.ConsoleSize.Width, func(ctx context.Context, h, w uint) {
			_, _ = a.api().ExecResize(ctx, id, moby.ExecResizeOptions{Height: h, Width: w})
		})()
	}
	if err := s.Run(ctx); err != nil && !errors.Is(err, stdio.ErrDetached) {
		return err
	} else if err != nil {
		return nil
	}
	res, err := a.api().ExecInspect(ctx, id, moby.ExecInspectOptions{})
	if err != nil {
		return err
	}
	return status(res.ExitCode)
}
