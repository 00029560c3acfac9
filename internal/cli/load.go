package cli

import (
	"context"
	"errors"
	"io"
	"os"

	moby "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/stdio"
)

func newLoad(a *app) *cobra.Command {
	c := command("load [OPTIONS]", "Load an image from a tar archive or STDIN", args(0, 0),
		"hyper image load", "hyper load")
	var input string
	var quiet bool
	c.Flags().StringVarP(&input, "input", "i", "", "Read from tar archive file, instead of STDIN")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	c.RunE = run(func(ctx context.Context, _ []string) error {
		if input == "" {
			return cannot(a.load(ctx, a.in, quiet), "load an image")
		}
		f, err := os.Open(input)
		if err != nil {
			return cannot(err, "load an image")
		}
		defer f.Close()
		return cannot(a.load(ctx, f, quiet), "load %s", input)
	})
	return c
}

func (a *app) load(ctx context.Context, in io.Reader, quiet bool) error {
	if _, ok := stdio.Terminal(in); ok {
		return hinted{errors.New("standard input is a terminal"), "redirect it, or use -i FILE"}
	}
	if _, ok := stdio.Terminal(a.out); !ok {
		quiet = true
	}
	res, err := a.api().ImageLoad(ctx, in, moby.ImageLoadWithQuiet(quiet))
	if err != nil {
		return err
	}
	defer res.Close()
	return jsonmessage.DisplayStream(res, a.out)
}
