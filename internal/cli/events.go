package cli

import (
	"context"
	"errors"
	"io"

	"github.com/moby/moby/api/types/events"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

func newEvents(a *app) *cobra.Command {
	c := command("events [OPTIONS]", "Get real time events from the server", args(0, 0),
		"hyper system events", "hyper events")
	o := moby.EventsListOptions{Filters: moby.Filters{}}
	var text string
	addFilter(c.Flags(), o.Filters)
	c.Flags().StringVar(&text, "format", "", valueFormatHelp)
	c.Flags().StringVar(&o.Since, "since", "", "Show all events created since timestamp")
	c.Flags().StringVar(&o.Until, "until", "", "Stream events until this timestamp")
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error {
		o.Since, o.Until = pointInTime(o.Since), pointInTime(o.Until)
		return cannot(a.events(ctx, o, text), "show events")
	})
	return c
}

func (a *app) events(ctx context.Context, o moby.EventsListOptions, text string) error {
	if text != "" { // what is wrong with it shall show before the first event
		if err := format.Value(io.Discard, text, events.Message{}); err != nil {
			return err
		}
	}
	res := a.api().Events(ctx, o)
	for {
		select {
		case e := <-res.Messages:
			if text == "" {
				a.println(show.Event(e))
			} else if err := format.Value(a.out, text, e); err != nil {
				return err
			}
		case err := <-res.Err:
			if errors.Is(err, io.EOF) { // --until has come
				return nil
			}
			return err
		}
	}
}
