package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	units "github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/api"
)

func newTemplate(a *app) *cobra.Command {
	return group("template", "Manage the saved VMs that others are cloned from",
		newTemplateCreate(a), newTemplateInspect(a), newTemplateLs(a), newTemplateRm(a))
}

func newTemplateLs(a *app) *cobra.Command {
	c := command("ls [OPTIONS]", "List templates", args(0, 0), "hyper template ls", "hyper template list")
	c.Aliases = []string{"list"}
	quiet := c.Flags().BoolP("quiet", "q", false, "Only show IDs")
	c.RunE = run(func(ctx context.Context, _ []string) error {
		list, err := a.api().Templates(ctx)
		if err != nil {
			return cannot(err, "list templates")
		}
		if *quiet {
			for _, t := range list {
				a.println(t.ID)
			}
			return nil
		}
		return a.showTemplates(list)
	})
	return c
}

func (a *app) showTemplates(list []api.Template) error {
	w := tabwriter.NewWriter(a.out, 10, 1, 3, ' ', 0)
	fmt.Fprintln(w, "TEMPLATE ID\tSTATUS\tACCEL\tCPUS\tMEMORY\tNIC\tCLONES\tHOST MEMORY\tDISK\tCREATED")
	for _, t := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%t\t%d\t%s\t%s\t%s\n", t.ID, t.Status, t.Accel, t.CPUs,
			units.BytesSize(float64(t.MemMiB)*units.MiB), t.NIC, t.Clones,
			units.HumanSize(float64(t.MemoryBytes)), units.HumanSize(float64(t.DiskBytes)), since(t.Created))
	}
	return w.Flush()
}

func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

func newTemplateCreate(a *app) *cobra.Command {
	c := command("create [OPTIONS]", "Make a template, unless there is one already", args(0, 0), "hyper template create")
	cpus := c.Flags().Int("cpus", 0, "CPUs that containers can have (default: those of the usual template)")
	memory := c.Flags().StringP("memory", "m", "", "Memory that containers can have (default: that of the usual template)")
	noNIC := c.Flags().Bool("no-network", false, "For containers with --network none")
	c.RunE = run(func(ctx context.Context, _ []string) error {
		r := api.TemplateRequest{CPUs: *cpus, NoNIC: *noNIC}
		var err error
		if *memory != "" {
			var n int64
			n, err = units.RAMInBytes(*memory)
			r.MemMiB = int((n + units.MiB - 1) / units.MiB)
		}
		var t api.Template
		if err == nil {
			t, err = a.api().CreateTemplate(ctx, r)
		}
		if err != nil {
			return cannot(err, "make a template")
		}
		a.println(t.ID)
		return nil
	})
	return c
}

func newTemplateRm(a *app) *cobra.Command {
	c := command("rm TEMPLATE [TEMPLATE...]", "Remove templates; VMs made of them run on", args(1, -1), "hyper template rm", "hyper template remove")
	c.Aliases = []string{"remove"}
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "remove template", args, a.api().RemoveTemplate)
	})
	return c
}

func newTemplateInspect(a *app) *cobra.Command {
	c := command("inspect TEMPLATE [TEMPLATE...]", "Display all that is known of templates, as JSON", args(1, -1), "hyper template inspect")
	c.RunE = run(func(ctx context.Context, args []string) error {
		list := []api.Template{}
		var errs []error
		for _, id := range args {
			t, err := a.api().Template(ctx, id)
			if err != nil {
				errs = append(errs, cannot(err, "inspect template %s", id))
				continue
			}
			list = append(list, t)
		}
		data, err := json.MarshalIndent(list, "", "    ")
		if err != nil {
			return err
		}
		a.println(string(data))
		return errors.Join(errs...)
	})
	return c
}

// showTrace prints where the time of a start went, to standard error since
// standard output is the container's.
func (a *app) showTrace(ctx context.Context, container string) {
	t, err := a.api().Trace(ctx, container)
	if err != nil {
		fmt.Fprintln(a.err, "hyper: no trace:", err)
		return
	}
	w := tabwriter.NewWriter(a.err, 10, 1, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "STAGE (%s)\tAT\tTOOK\t\n", t.Road)
	for _, s := range t.Stages {
		fmt.Fprintf(w, "%s\t%s\t%s\t\n", s.Name, s.At.Round(10*time.Microsecond), s.Took.Round(10*time.Microsecond))
	}
	w.Flush() //nolint:errcheck // to standard error
}
