package cli

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

// podStatsInterval is how long figures are added up that are given per second.
const podStatsInterval = time.Second

type podStatsFlags struct {
	noStream, noTrunc bool
	format            string
}

func newPodStats(a *app) *cobra.Command {
	c := command("stats [OPTIONS] [POD...]", "Display a live stream of what pods use, in the VM and on the host", args(0, -1))
	var f podStatsFlags
	addFormat(c.Flags(), &f.format)
	c.Flags().BoolVar(&f.noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "Do not truncate output")
	c.ValidArgsFunction = a.completePods(-1, runningPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return cannot(a.podStats(ctx, f, args), "show statistics of pods")
	})
	return c
}

// A podFigure is the newest figures of one pod, and those before.
type podFigure struct {
	before, now *api.PodStats
	at          time.Time
	took        time.Duration // from before to now
	err         error
}

func (a *app) podStats(ctx context.Context, f podStatsFlags, names []string) error {
	figures := map[string]*podFigure{}
	tick := time.NewTicker(podStatsInterval)
	defer tick.Stop()
	for round := 0; ; round++ {
		shown, err := a.statsNames(ctx, names)
		if err != nil {
			return err
		}
		a.readPodStats(ctx, shown, figures)
		gone := 0
		for _, name := range shown {
			if err := figures[name].err; err != nil {
				gone++
				if round == 0 && len(names) > 0 {
					return err
				}
			}
		}
		if round > 0 || !f.noStream {
			err = a.writePodStats(f, shown, figures)
		}
		if err != nil || f.noStream && round > 0 || len(names) > 0 && gone == len(shown) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// statsNames are the pods to show: those named, or all that run.
func (a *app) statsNames(ctx context.Context, names []string) ([]string, error) {
	if len(names) > 0 {
		slices.Sort(names)
		return slices.Compact(names), nil
	}
	pods, err := a.api().Pods(ctx)
	if err != nil {
		return nil, err
	}
	pods = slices.DeleteFunc(pods, func(p api.Pod) bool { return p.Name == "" || !runningPod(p.Status) && !pausedPod(p.Status) })
	for _, p := range pods {
		names = append(names, p.Name)
	}
	return names, nil
}

// readPodStats brings the figures of pods up to date, of all at once.
func (a *app) readPodStats(ctx context.Context, names []string, figures map[string]*podFigure) {
	var wg sync.WaitGroup
	for _, name := range names {
		fig := figures[name]
		if fig == nil {
			fig = &podFigure{}
			figures[name] = fig
		}
		wg.Go(func() {
			s, err := a.api().PodStats(ctx, name)
			if fig.err = err; err != nil {
				fig.before, fig.now = nil, nil
				return
			}
			now := time.Now()
			fig.before, fig.now, fig.took, fig.at = fig.now, &s, now.Sub(fig.at), now
		})
	}
	wg.Wait()
}

func (a *app) writePodStats(f podStatsFlags, names []string, figures map[string]*podFigure) error {
	var rows []format.Row
	for _, name := range names {
		fig := figures[name]
		rows = append(rows, show.PodFigure(name, fig.before, fig.now, fig.took, !f.noTrunc))
	}
	var text bytes.Buffer
	if err := show.PodFigures.Write(&text, f.format, rows); err != nil {
		return err
	}
	if !f.noStream {
		return a.redrawScreen(&text)
	}
	_, err := io.Copy(a.out, &text)
	return err
}
