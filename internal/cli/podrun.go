package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/runflags"
)

// maxPodFile is as much as the daemon takes.
const maxPodFile = 4 << 20

func newPodCreate(a *app) *cobra.Command {
	c := command("create [OPTIONS]", "Create a new pod, without containers", args(0, 0))
	c.Long = "It outlives its last container unless it is made with --rm.\n\n  hyper pod create --name shop --memory 512m --cpus 2"
	c.Flags().Bool("help", false, "Print usage")
	flags := runflags.AddPod(c.Flags())
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error {
		req, err := flags.Request()
		var p api.Pod
		if err == nil {
			p, err = a.api().CreatePod(ctx, req)
		}
		if err != nil {
			return withCode(exitRefused, cannot(err, "create a pod"))
		}
		a.println(p.ID)
		return nil
	})
	return c
}

// podRunFlags are the flags of pod run. Those of a pod win over those of a
// container that have the same names.
type podRunFlags struct {
	fs        *pflag.FlagSet
	pod       *runflags.Pod
	container *runFlags

	file                 string
	replace, wait, start bool
	waitTimeout          int
}

func newPodRun(a *app) *cobra.Command {
	c := command("run [OPTIONS] IMAGE [COMMAND] [ARG...] | run -f FILE [OPTIONS]", "Create pods and start them", args(0, -1))
	c.Long = "With an image, a new pod with a container of it, as 'hyper pod create' and 'hyper run --pod'.\n" +
		"With a file (- is standard input), the pods that it describes: Kubernetes' Pod, Deployment and\n" +
		"Job, with the ConfigMaps and Secrets that they name.\n\n" +
		"  hyper pod run --name shop -d nginx\n  hyper pod run -f shop.yaml --replace --wait"
	f := addPodRunFlags(c.Flags())
	c.ValidArgsFunction = a.completeImages(1)
	c.RunE = run(func(ctx context.Context, args []string) error {
		if err := f.check(args); err != nil {
			return withCode(exitRefused, &usageError{err: err, usage: c.UseLine(), command: c.CommandPath()})
		}
		if f.file != "" {
			return a.podPlay(ctx, f)
		}
		return a.podRun(ctx, f, args)
	})
	return c
}

func addPodRunFlags(fs *pflag.FlagSet) *podRunFlags {
	f := &podRunFlags{fs: fs, pod: runflags.AddPod(fs)}
	fs.SetInterspersed(false)
	fs.StringVarP(&f.file, "file", "f", "", "File of pods to run, - for standard input")
	fs.BoolVar(&f.replace, "replace", false, "With --file: remove pods of the same names first")
	fs.BoolVar(&f.wait, "wait", false, "With --file: return when all containers are ready, or one never will be")
	fs.IntVar(&f.waitTimeout, "wait-timeout", waitTimeout, "With --wait: seconds to wait, 0 for ever")
	fs.BoolVar(&f.start, "start", true, "With --file: start the pods")
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.container = addRunFlags(own)
	own.VisitAll(func(flag *pflag.Flag) {
		if fs.Lookup(flag.Name) != nil || slices.Contains([]string{"net", "dns-opt", "pod"}, flag.Name) {
			return
		}
		if flag.Shorthand != "" && fs.ShorthandLookup(flag.Shorthand) != nil {
			flag.Shorthand = ""
		}
		fs.AddFlag(flag)
	})
	return f
}

// ofFile are the flags that go with --file, and only with it.
var ofFile = []string{"file", "replace", "wait", "wait-timeout", "start"}

func (f *podRunFlags) check(args []string) (err error) {
	if f.file == "" && len(args) == 0 {
		return errors.New("'hyper pod run' requires an image or --file")
	}
	if f.file != "" && len(args) > 0 {
		return errors.New("'hyper pod run --file' accepts no arguments")
	}
	f.fs.Visit(func(flag *pflag.Flag) {
		of := slices.Contains(ofFile, flag.Name)
		switch {
		case err != nil:
		case f.file == "" && of:
			err = fmt.Errorf("--%s needs --file", flag.Name)
		case f.file != "" && !of:
			err = fmt.Errorf("--%s and --file exclude each other: the file says it", flag.Name)
		}
	})
	return err
}

// podRun makes a pod and runs a container in it.
func (a *app) podRun(ctx context.Context, f *podRunFlags, args []string) error {
	fail := func(err error) error { return withCode(createCode(err), cannot(err, "run a pod")) }
	req, err := f.pod.Request()
	if err != nil {
		return fail(err)
	}
	p, err := a.api().CreatePod(ctx, req)
	if err != nil {
		return fail(err)
	}
	f.container.SetPod(p.ID)
	f.container.AutoRemove = f.pod.AutoRemove
	c, err := a.createToRun(ctx, f.container, args)
	if err != nil {
		if err := a.api().RemovePod(context.WithoutCancel(ctx), p.ID, true); err != nil {
			fmt.Fprintf(a.err, "hyper: pod %s is left over: %v\n", p.Name, err)
		}
		return fail(err)
	}
	return a.startCreated(ctx, c, p.ID)
}

// podPlay runs the pods of a file and prints their names.
func (a *app) podPlay(ctx context.Context, f *podRunFlags) error {
	name := f.file
	if name == "-" {
		name = "stdin"
	}
	data, err := a.readPodFile(f.file)
	var made api.Played
	if err == nil {
		made, err = a.api().PlayPods(ctx, data, api.PlayOptions{File: name, Create: !f.start, Replace: f.replace, Wait: f.wait, Timeout: f.waitTimeout})
	}
	if err != nil {
		return withCode(exitRefused, cannot(problems(err), "run pods"))
	}
	for _, w := range made.Warnings {
		fmt.Fprintln(a.err, "WARNING:", w)
	}
	for _, p := range made.Pods {
		a.println(p.Name)
	}
	return nil
}

// problems makes each line of an error one of its own: a file may have many.
func problems(err error) error {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	if len(lines) == 1 {
		return err
	}
	errs := make([]error, len(lines))
	for i, l := range lines {
		errs[i] = errors.New(l)
	}
	return errors.Join(errs...)
}

func (a *app) readPodFile(name string) ([]byte, error) {
	in := a.in
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, maxPodFile+1))
	if err == nil && len(data) > maxPodFile {
		err = fmt.Errorf("%s is larger than %d MiB", name, maxPodFile>>20)
	}
	return data, err
}
