package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

type podLsFlags struct {
	all, noTrunc, quiet bool
	format              string
	filters             moby.Filters
}

func newPodLs(a *app) *cobra.Command {
	c := as(command("ls [OPTIONS]", "List pods", args(0, 0), "hyper pod ls, hyper pod list"), "ls", "list")
	f := podLsFlags{filters: moby.Filters{}}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show also the pods that were made for one container")
	addFilter(fs, f.filters)
	addFormat(fs, &f.format)
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only display pod IDs")
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error { return cannot(a.podLs(ctx, f), "list pods") })
	return c
}

func (a *app) podLs(ctx context.Context, f podLsFlags) error {
	keep, err := podFilter(f.filters)
	if err != nil {
		return err
	}
	pods, err := a.api().Pods(ctx)
	if err != nil {
		return err
	}
	if f.quiet {
		f.format = "{{.ID}}"
	}
	rows := []format.Row{}
	for _, p := range pods {
		if (f.all || p.Name != "") && keep(p) {
			rows = append(rows, show.Pod(p, !f.noTrunc))
		}
	}
	return show.Pods.Write(a.out, f.format, rows)
}

// podStatuses are all statuses of a pod.
var podStatuses = []string{"created", "running", "degraded", "paused", "exited"}

// podFilter makes conditions into one predicate. Of several values for one
// name one must hold, for labels all.
func podFilter(filters moby.Filters) (func(api.Pod) bool, error) {
	for name, values := range filters {
		switch name {
		case "id", "name", "label":
		case "status":
			for v := range values {
				if !slices.Contains(podStatuses, v) {
					return nil, fmt.Errorf("invalid filter 'status=%s': must be one of %s", v, strings.Join(podStatuses, ", "))
				}
			}
		default:
			return nil, fmt.Errorf("invalid filter '%s': there are id, name, status and label", name)
		}
	}
	match := func(name string, f func(value string) bool) bool {
		return len(filters[name]) == 0 || slices.ContainsFunc(slices.Collect(maps.Keys(filters[name])), f)
	}
	return func(p api.Pod) bool {
		for want := range filters["label"] {
			key, value, hasValue := strings.Cut(want, "=")
			if got, ok := p.Spec.Labels[key]; !ok || hasValue && got != value {
				return false
			}
		}
		return match("id", func(v string) bool { return strings.HasPrefix(p.ID, v) }) &&
			match("status", func(v string) bool { return p.Status == v }) &&
			match("name", func(v string) bool {
				re, err := regexp.Compile(v)
				return p.Name == v || err == nil && re.MatchString(p.Name)
			})
	}, nil
}

func newPodPs(a *app) *cobra.Command {
	c := command("ps [OPTIONS] POD", "List the containers of a pod", args(1, 1))
	var f psFlags
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	addFormat(fs, &f.format)
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only display container IDs")
	c.ValidArgsFunction = a.completePods(1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		p, err := a.api().Pod(ctx, args[0])
		if err == nil {
			f.filters, f.last = moby.Filters{}, -1
			for _, c := range p.Containers {
				f.filters.Add("id", c.ID)
			}
			if f.quiet {
				f.format = "{{.ID}}"
			}
			if len(p.Containers) == 0 { // no filter would be all containers
				err = show.Containers.Write(a.out, f.format, nil)
			} else {
				err = a.ps(ctx, f)
			}
		}
		return cannot(err, "list the containers of pod %s", args[0])
	})
	return c
}

func newPodInspect(a *app) *cobra.Command {
	c := command("inspect [OPTIONS] POD [POD...]", "Display detailed information on one or more pods", args(1, -1))
	var text string
	addValueFormat(c.Flags(), &text)
	c.ValidArgsFunction = a.completePods(-1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error { return a.podInspect(ctx, text, args) })
	return c
}

func (a *app) podInspect(ctx context.Context, text string, names []string) error {
	var errs []error
	var raws []json.RawMessage
	asJSON := text == "" || text == "json"
	for _, name := range names {
		p, err := a.api().Pod(ctx, name)
		var raw []byte
		if err == nil {
			raw, err = json.Marshal(p)
		}
		if err == nil && !asJSON {
			err = a.printObject(object{p, raw}, text)
		}
		if err != nil {
			errs = append(errs, cannot(err, "inspect pod %s", name))
			continue
		}
		raws = append(raws, raw)
	}
	if asJSON {
		if err := a.printRaw(raws, text == ""); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
