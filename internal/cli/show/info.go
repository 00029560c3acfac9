package show

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client/pkg/security"
)

// A page is written line by line.
type page struct{ w io.Writer }

func (p page) println(v ...any) { fmt.Fprintln(p.w, v...) }

// Info prints what the daemon says of itself; the VMM, the accelerator
// and the kernel are among the pairs of the driver's status.
func Info(w io.Writer, i *system.Info) {
	p := page{w}
	p.println("Server:")
	p.println(" Containers:", i.Containers)
	p.println("  Running:", i.ContainersRunning)
	p.println("  Paused:", i.ContainersPaused)
	p.println("  Stopped:", i.ContainersStopped)
	p.println(" Images:", i.Images)
	p.line("Server Version", i.ServerVersion)
	p.line("Storage Driver", i.Driver)
	for _, kv := range i.DriverStatus {
		p.println("  "+kv[0]+":", kv[1])
	}
	for _, kv := range i.SystemStatus {
		p.println(" "+kv[0]+":", kv[1])
	}
	p.line("Logging Driver", i.LoggingDriver)
	p.line("Cgroup Driver", i.CgroupDriver)
	p.line("Cgroup Version", i.CgroupVersion)
	p.println(" Plugins:")
	p.println("  Volume:", strings.Join(i.Plugins.Volume, " "))
	p.println("  Network:", strings.Join(i.Plugins.Network, " "))
	p.println("  Log:", strings.Join(i.Plugins.Log, " "))
	p.line("Swarm", string(i.Swarm.LocalNodeState))
	if len(i.Runtimes) > 0 {
		p.line("Runtimes", strings.Join(slices.Sorted(maps.Keys(i.Runtimes)), " "))
		p.line("Default Runtime", i.DefaultRuntime)
	}
	p.line("Init Binary", i.InitBinary)
	p.printSecurity(i.SecurityOptions)
	p.line("Kernel Version", i.KernelVersion)
	p.line("Operating System", i.OperatingSystem)
	p.line("OSType", i.OSType)
	p.line("Architecture", i.Architecture)
	p.println(" CPUs:", i.NCPU)
	p.println(" Total Memory:", units.BytesSize(float64(i.MemTotal)))
	p.line("Name", i.Name)
	p.line("ID", i.ID)
	p.line("Hyper Root Dir", i.DockerRootDir)
	p.println(" Debug Mode:", i.Debug)
	if i.Debug {
		p.println("  File Descriptors:", i.NFd)
		p.println("  Goroutines:", i.NGoroutines)
		p.println("  EventsListeners:", i.NEventsListener)
	}
	p.line("HTTP Proxy", i.HTTPProxy)
	p.line("HTTPS Proxy", i.HTTPSProxy)
	p.line("No Proxy", i.NoProxy)
	if len(i.Labels) > 0 {
		p.println(" Labels:")
		for _, l := range i.Labels {
			p.println("  " + l)
		}
	}
	p.printRegistries(i)
	p.println(" Live Restore Enabled:", i.LiveRestoreEnabled)
	if f := i.FirewallBackend; f != nil {
		p.println(" Firewall Backend:", f.Driver)
		for _, kv := range f.Info {
			p.println("  "+kv[0]+":", kv[1])
		}
	}
}

// line prints a name and its value unless that is "".
func (p page) line(name, value string) {
	if value != "" {
		p.println(" "+name+":", value)
	}
}

func (p page) printSecurity(options []string) {
	if len(options) == 0 {
		return
	}
	p.println(" Security Options:")
	for _, o := range security.DecodeOptions(options) {
		p.println("  " + o.Name)
		for _, kv := range o.Options {
			if kv.Key == "profile" {
				p.println("   Profile:", kv.Value)
			}
		}
	}
}

func (p page) printRegistries(i *system.Info) {
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
		p.println(" Insecure Registries:")
		for _, s := range insecure {
			p.println("  " + s)
		}
	}
	if len(i.RegistryConfig.Mirrors) > 0 {
		p.println(" Registry Mirrors:")
		for _, m := range i.RegistryConfig.Mirrors {
			p.println("  " + m)
		}
	}
}
