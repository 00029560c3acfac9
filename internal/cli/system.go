package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

func newSystem(a *app) *cobra.Command {
	return group("system", "Manage Hyper", newDiskUsage(a), newEvents(a), newInfo(a), newSystemPrune(a))
}

var diskUsageTable = format.Table{
	Columns: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
	Headers: format.Row{"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"},
}

func newDiskUsage(a *app) *cobra.Command {
	c := command("df [OPTIONS]", "Show disk usage", args(0, 0))
	var text string
	var verbose bool
	addFormat(c.Flags(), &text)
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	c.RunE = run(func(ctx context.Context, _ []string) error {
		u, err := a.api().DiskUsage(ctx, moby.DiskUsageOptions{Verbose: verbose})
		if err != nil {
			return cannot(err, "show disk usage")
		}
		if verbose {
			return cannot(a.printUsageVerbose(u, text), "show disk usage")
		}
		rows := []format.Row{
			usageRow("Images", u.Images.TotalCount, u.Images.ActiveCount, u.Images.TotalSize, u.Images.Reclaimable),
			usageRow("Containers", u.Containers.TotalCount, u.Containers.ActiveCount, u.Containers.TotalSize, u.Containers.Reclaimable),
			usageRow("Local Volumes", u.Volumes.TotalCount, u.Volumes.ActiveCount, u.Volumes.TotalSize, u.Volumes.Reclaimable),
			usageRow("Build Cache", u.BuildCache.TotalCount, u.BuildCache.ActiveCount, u.BuildCache.TotalSize, u.BuildCache.Reclaimable),
		}
		return cannot(diskUsageTable.Write(a.out, text, rows), "show disk usage")
	})
	return c
}

func usageRow(kind string, total, active, size, reclaimable int64) format.Row {
	free := units.HumanSize(float64(reclaimable))
	if size > 0 && kind != "Build Cache" {
		free = fmt.Sprintf("%s (%d%%)", free, reclaimable*100/size)
	}
	return format.Row{
		"Type": kind, "TotalCount": strconv.FormatInt(total, 10), "Active": strconv.FormatInt(active, 10),
		"Size": units.HumanSize(float64(size)), "Reclaimable": free,
	}
}

// printUsageVerbose lists every image and container with its size.
func (a *app) printUsageVerbose(u moby.DiskUsageResult, text string) error {
	var images, containers []format.Row
	for _, i := range u.Images.Items {
		images = append(images, show.Image(i, true, false)[0])
	}
	for _, c := range u.Containers.Items {
		c.SizeRootFs = 0
		containers = append(containers, show.Container(c, true))
	}
	if text != "" && text != "table" {
		return format.Value(a.out, text, map[string]any{
			"Images": images, "Containers": containers, "Volumes": u.Volumes.Items, "BuildCache": u.BuildCache.Items,
		})
	}
	it, ct := show.Images, show.Containers
	it.Columns += "\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}"
	ct.Columns = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}"
	vt := format.Table{Columns: "{{.Name}}\t{{.Links}}\t{{.Size}}", Headers: format.Row{"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}}
	var volumes []format.Row
	for _, v := range u.Volumes.Items {
		r := format.Row{"Name": v.Name, "Links": "N/A", "Size": "N/A"}
		if d := v.UsageData; d != nil {
			r["Links"], r["Size"] = strconv.FormatInt(d.RefCount, 10), units.HumanSize(float64(d.Size))
		}
		volumes = append(volumes, r)
	}
	fmt.Fprint(a.out, "Images space usage:\n\n")
	if err := it.Write(a.out, "", images); err != nil {
		return err
	}
	fmt.Fprint(a.out, "\nContainers space usage:\n\n")
	if err := ct.Write(a.out, "", containers); err != nil {
		return err
	}
	fmt.Fprint(a.out, "\nLocal Volumes space usage:\n\n")
	return vt.Write(a.out, "", volumes)
}

func newSystemPrune(a *app) *cobra.Command {
	c := command("prune [OPTIONS]", "Remove unused data", args(0, 0))
	filters := moby.Filters{}
	var all, force, volumes bool
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images not just dangling ones")
	c.Flags().Var(filterValue(filters), "filter", `Provide filter values (e.g. "label=<key>=<value>")`)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	c.Flags().BoolVar(&volumes, "volumes", false, "Prune anonymous volumes [not supported yet]")
	c.RunE = run(func(ctx context.Context, _ []string) error {
		if volumes {
			return withCode(exitRefused, cannot(fmt.Errorf("--volumes is not supported yet"), "prune"))
		}
		images := "all dangling images"
		if all {
			images = "all images without at least one container associated to them"
		}
		question := "WARNING! This will remove:\n  - all stopped containers\n  - " + images + "\n\nAre you sure you want to continue?"
		if !force && !a.confirm(question) {
			return nil
		}
		freed, err := a.pruneContainers(ctx, filters)
		if err != nil {
			return cannot(err, "prune containers")
		}
		more, err := a.pruneImages(ctx, filters, all)
		if err != nil {
			return cannot(err, "prune images")
		}
		a.println("Total reclaimed space:", units.HumanSize(float64(freed+more)))
		return nil
	})
	return c
}
