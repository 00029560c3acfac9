package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/system"
	moby "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/security"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
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
		a.printInfo(&res.Info)
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

// printInfo prints what the daemon says of itself; the VMM, the accelerator
// and the kernel are among the pairs of the driver's status.
func (a *app) printInfo(i *system.Info) {
	a.println("Server:")
	a.println(" Containers:", i.Containers)
	a.println("  Running:", i.ContainersRunning)
	a.println("  Paused:", i.ContainersPaused)
	a.println("  Stopped:", i.ContainersStopped)
	a.println(" Images:", i.Images)
	a.line("Server Version", i.ServerVersion)
	a.line("Storage Driver", i.Driver)
	for _, p := range i.DriverStatus {
		a.println("  "+p[0]+":", p[1])
	}
	for _, p := range i.SystemStatus {
		a.println(" "+p[0]+":", p[1])
	}
	a.line("Logging Driver", i.LoggingDriver)
	a.line("Cgroup Driver", i.CgroupDriver)
	a.line("Cgroup Version", i.CgroupVersion)
	a.println(" Plugins:")
	a.println("  Volume:", strings.Join(i.Plugins.Volume, " "))
	a.println("  Network:", strings.Join(i.Plugins.Network, " "))
	a.println("  Log:", strings.Join(i.Plugins.Log, " "))
	a.line("Swarm", string(i.Swarm.LocalNodeState))
	if len(i.Runtimes) > 0 {
		a.line("Runtimes", strings.Join(slices.Sorted(maps.Keys(i.Runtimes)), " "))
		a.line("Default Runtime", i.DefaultRuntime)
	}
	a.line("Init Binary", i.InitBinary)
	a.printSecurity(i.SecurityOptions)
	a.line("Kernel Version", i.KernelVersion)
	a.line("Operating System", i.OperatingSystem)
	a.line("OSType", i.OSType)
	a.line("Architecture", i.Architecture)
	a.println(" CPUs:", i.NCPU)
	a.println(" Total Memory:", units.BytesSize(float64(i.MemTotal)))
	a.line("Name", i.Name)
	a.line("ID", i.ID)
	a.line("Hyper Root Dir", i.DockerRootDir)
	a.println(" Debug Mode:", i.Debug)
	if i.Debug {
		a.println("  File Descriptors:", i.NFd)
		a.println("  Goroutines:", i.NGoroutines)
		a.println("  EventsListeners:", i.NEventsListener)
	}
	a.line("HTTP Proxy", i.HTTPProxy)
	a.line("HTTPS Proxy", i.HTTPSProxy)
	a.line("No Proxy", i.NoProxy)
	if len(i.Labels) > 0 {
		a.println(" Labels:")
		for _, l := range i.Labels {
			a.println("  " + l)
		}
	}
	a.printRegistries(i)
	a.println(" Live Restore Enabled:", i.LiveRestoreEnabled)
	if f := i.FirewallBackend; f != nil {
		a.println(" Firewall Backend:", f.Driver)
		for _, p := range f.Info {
			a.println("  "+p[0]+":", p[1])
		}
	}
}

// line prints a name and its value unless that is "".
func (a *app) line(name, value string) {
	if value != "" {
		a.println(" "+name+":", value)
	}
}

func (a *app) printSecurity(options []string) {
	if len(options) == 0 {
		return
	}
	a.println(" Security Options:")
	for _, o := range security.DecodeOptions(options) {
		a.println("  " + o.Name)
		for _, kv := range o.Options {
			if kv.Key == "profile" {
				a.println("   Profile:", kv.Value)
			}
		}
	}
}

func (a *app) printRegistries(i *system.Info) {
	if i.RegistryConfig == nil {
		return
	}
	var insecure []string
	for _, name := range slices.Sorted(maps.Keys(i.RegistryConfig.IndexConfigs)) {
		if !i.RegistryConfig.IndexConfigs[name].Secure {
			insecure = append(insecure, name)
		}
	}
	for _, c := range i.RegistryConfig.InsecureRegistryCIDRs {
		insecure = append(insecure, c.String())
	}
	if len(insecure) > 0 {
		a.println(" Insecure Registries:")
		for _, s := range insecure {
			a.println("  " + s)
		}
	}
	if len(i.RegistryConfig.Mirrors) > 0 {
		a.println(" Registry Mirrors:")
		for _, m := range i.RegistryConfig.Mirrors {
			a.println("  " + m)
		}
	}
}
