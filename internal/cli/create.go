package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hyper-run/hyper/internal/cli/runflags"
)

// createFlags are the flags of run and create that are not in the request.
type createFlags struct {
	name, platform, pull string
	quiet                bool
	*runflags.Flags
}

func addCreateFlags(fs *pflag.FlagSet) *createFlags {
	c := &createFlags{}
	fs.SetInterspersed(false)
	fs.StringVar(&c.name, "name", "", "Assign a name to the container")
	fs.StringVar(&c.platform, "platform", "", "Set platform if server is multi-platform capable")
	fs.StringVar(&c.pull, "pull", "missing", `Pull image before running ("always", "missing", "never")`)
	fs.BoolVarP(&c.quiet, "quiet", "q", false, "Suppress the pull output")
	fs.Bool("help", false, "Print usage")
	c.Flags = runflags.Add(fs)
	return c
}

func newCreate(a *app) *cobra.Command {
	c := command("create [OPTIONS] IMAGE [COMMAND] [ARG...]", "Create a new container", args(1, -1),
		"hyper container create", "hyper create")
	flags := addCreateFlags(c.Flags())
	c.ValidArgsFunction = a.completeImages(1)
	a.completeFlag(c, "pod", a.completePods(-1, anyPod))
	c.RunE = run(func(ctx context.Context, args []string) error {
		id, err := a.createContainer(ctx, flags, args)
		if err != nil {
			return withCode(createCode(err), cannot(err, "create"))
		}
		a.println(id)
		return nil
	})
	return c
}

// createCode keeps Docker's habit of ending with 1 when only the terminal is
// wrong, and with 125 for all else.
func createCode(err error) int {
	if errors.Is(err, errNotTTY) {
		return exitFailed
	}
	return exitRefused
}

// createContainer creates what flags and args say and prints warnings.
func (a *app) createContainer(ctx context.Context, f *createFlags, args []string) (id string, err error) {
	req, err := f.request(args)
	if err != nil {
		return "", err
	}
	return a.create(ctx, f, req)
}

func (f *createFlags) request(args []string) (moby.ContainerCreateOptions, error) {
	switch f.pull {
	case "always", "missing", "never":
	default:
		return moby.ContainerCreateOptions{}, fmt.Errorf(`--pull %q: must be one of "always", "missing" or "never"`, f.pull)
	}
	req, err := f.Request(args[0], args[1:])
	if err != nil {
		return req, err
	}
	req.Name = f.name
	req.Platform, err = parsePlatform(f.platform)
	return req, err
}

func (a *app) create(ctx context.Context, f *createFlags, req moby.ContainerCreateOptions) (id string, err error) {
	cid, err := openCIDFile(f.CIDFile)
	if err != nil {
		return "", err
	}
	defer cid.close()
	image := req.Config.Image
	if f.pull == "always" {
		if err := a.pullMissing(ctx, image, f); err != nil {
			return "", err
		}
	}
	res, err := a.api().ContainerCreate(ctx, req)
	if errdefs.IsNotFound(err) && strings.Contains(err.Error(), "o such image") && f.pull == "missing" {
		if !f.quiet {
			fmt.Fprintf(a.err, "Unable to find image '%s' locally\n", familiar(image))
		}
		if err := a.pullMissing(ctx, image, f); err != nil {
			return "", err
		}
		res, err = a.api().ContainerCreate(ctx, req)
	}
	if err != nil {
		return "", err
	}
	for _, w := range res.Warnings {
		fmt.Fprintln(a.err, "WARNING:", w)
	}
	return res.ID, cid.write(res.ID)
}

// A cidFile receives the container's ID. It is made before the container is,
// so that one that exists already is refused.
type cidFile struct {
	*os.File
	written bool
}

func openCIDFile(path string) (*cidFile, error) {
	if path == "" {
		return &cidFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("--cidfile %s exists: its container may still be running; if it is not, remove the file", path)
	}
	if err != nil {
		return nil, fmt.Errorf("--cidfile: %w", err)
	}
	return &cidFile{File: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.File == nil {
		return nil
	}
	if _, err := c.WriteString(id); err != nil {
		return fmt.Errorf("--cidfile: %w", err)
	}
	c.written = true
	return nil
}

// close removes the file when no container came of it.
func (c *cidFile) close() {
	if c.File == nil {
		return
	}
	c.Close()
	if !c.written {
		os.Remove(c.Name())
	}
}
