package cli

import (
	"context"
	"errors"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/stdio"
)

func newSave(a *app) *cobra.Command {
	c := command("save [OPTIONS] IMAGE [IMAGE...]", "Save one or more images to a tar archive (streamed to STDOUT by default)", args(1, -1),
		"hyper image save", "hyper save")
	var output string
	c.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	c.ValidArgsFunction = a.completeImages(-1)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return cannot(a.save(ctx, args, output), "save")
	})
	return c
}

func (a *app) save(ctx context.Context, images []string, output string) error {
	if _, ok := stdio.Terminal(a.out); ok && output == "" {
		return hinted{errors.New("the output is a terminal"), "redirect it, or use -o FILE"}
	}
	res, err := a.api().ImageSave(ctx, images)
	if err != nil {
		return err
	}
	defer res.Close()
	if output == "" {
		return stdio.Copy(a.out, res)
	}
	f, err := renameio.NewPendingFile(output, renameio.WithPermissions(0o600), renameio.WithExistingPermissions())
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }()
	if err := stdio.Copy(f, res); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
