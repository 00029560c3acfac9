package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/moby/moby/api/types/system"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/client"
	"github.com/hyper-run/hyper/internal/cli/format"
)

// clientVersion and serverVersion have Docker's fields, for templates.
type clientVersion struct {
	Version, APIVersion, DefaultAPIVersion, GitCommit, GoVersion, Os, Arch, BuildTime, Context string
}

type serverVersion struct {
	Platform                                                                                     moby.PlatformInfo
	Components                                                                                   []system.ComponentVersion
	Version, APIVersion, MinAPIVersion, GitCommit, GoVersion, Os, Arch, KernelVersion, BuildTime string
}

type versions struct {
	Client clientVersion
	Server *serverVersion
}

func newVersion(a *app) *cobra.Command {
	c := command("version [OPTIONS]", "Show the Hyper version information", args(0, 0))
	var text string
	var onlyClient bool
	addValueFormat(c.Flags(), &text)
	c.Flags().BoolVar(&onlyClient, "client", false, "Only the client's; don't ask the daemon")
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error {
		v := versions{Client: a.clientVersion()}
		var err error
		if !onlyClient {
			v.Server, err = a.serverVersion(ctx)
		}
		if text != "" {
			if e := format.Value(a.out, text, v); e != nil && err == nil {
				err = e
			}
		} else if e := a.printVersions(v); e != nil && err == nil {
			err = e
		}
		return cannot(err, "show the version")
	})
	return c
}

func (a *app) clientVersion() clientVersion {
	return clientVersion{
		Version: a.Version, APIVersion: client.APIVersion, DefaultAPIVersion: client.APIVersion, GitCommit: a.Commit,
		GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH, BuildTime: readable(a.BuildTime), Context: "default",
	}
}

func (a *app) serverVersion(ctx context.Context) (*serverVersion, error) {
	res, err := a.api().ServerVersion(ctx, moby.ServerVersionOptions{})
	if err != nil {
		return nil, err
	}
	v := &serverVersion{
		Platform: res.Platform, Components: res.Components, Version: res.Version, APIVersion: res.APIVersion,
		MinAPIVersion: res.MinAPIVersion, Os: res.Os, Arch: res.Arch,
	}
	for _, c := range res.Components {
		if c.Name == "Engine" {
			v.GitCommit, v.GoVersion = c.Details["GitCommit"], c.Details["GoVersion"]
			v.KernelVersion, v.BuildTime = c.Details["KernelVersion"], readable(c.Details["BuildTime"])
		}
	}
	return v, nil
}

func (a *app) printVersions(v versions) error {
	w := tabwriter.NewWriter(a.out, 20, 1, 1, ' ', 0)
	c := v.Client
	fmt.Fprint(w, "Client: Hyper\n")
	printPairs(w, " ", "Version", c.Version, "API version", c.APIVersion, "Go version", c.GoVersion,
		"Git commit", c.GitCommit, "Built", c.BuildTime, "OS/Arch", c.Os+"/"+c.Arch)
	s := v.Server
	if s == nil {
		return w.Flush()
	}
	fmt.Fprintf(w, "\nServer: %s\n", s.Platform.Name)
	fmt.Fprint(w, " Engine:\n")
	printPairs(w, "  ", "Version", s.Version, "API version", fmt.Sprintf("%s (minimum version %s)", s.APIVersion, s.MinAPIVersion),
		"Go version", s.GoVersion, "Git commit", s.GitCommit, "Built", s.BuildTime, "OS/Arch", s.Os+"/"+s.Arch)
	for _, p := range s.Components {
		if p.Name == "Engine" {
			continue
		}
		fmt.Fprintf(w, " %s:\n", p.Name)
		printPairs(w, "  ", "Version", p.Version)
		for _, k := range slices.Sorted(maps.Keys(p.Details)) {
			printPairs(w, "  ", k, p.Details[k])
		}
	}
	return w.Flush()
}

// printPairs prints names and values by turns; values that are "" are left out.
func printPairs(w io.Writer, indent string, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%s%s:\t%s\n", indent, pairs[i], pairs[i+1])
		}
	}
}

// readable is a time stamp for people.
func readable(stamp string) string {
	if t, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
		return t.Format(time.ANSIC)
	}
	return stamp
}
