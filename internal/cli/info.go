package cli

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/system"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

// infoValue is what templates of info are given: Docker's fields.
type infoValue struct {
	*system.Info
	ClientInfo clientVersion
}

func newInfo(a *app) *cobra.Command {
	c := command("info [OPTIONS]", "Display system-wide information", args(0, 0),
		"hyper system info", "hyper info")
	var text string
	addValueFormat(c.Flags(), &text)
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error {
		res, err := a.api().Info(ctx, moby.InfoOptions{})
		switch {
		case err != nil:
			return cannot(err, "show information")
		case text != "":
			return cannot(format.Value(a.out, text, infoValue{&res.Info, a.clientVersion()}), "show information")
		}
		a.printClientInfo()
		show.Info(a.out, &res.Info)
		for _, w := range res.Info.Warnings {
			fmt.Fprintln(a.err, w)
		}
		return nil
	})
	return c
}

func (a *app) printClientInfo() {
	a.println("Client: Hyper")
	a.println(" Version:   ", a.Version)
	a.println(" Daemon:    ", a.host)
	a.println()
}
