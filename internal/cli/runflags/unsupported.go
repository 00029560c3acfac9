package runflags

import (
	"fmt"
	"slices"

	"github.com/spf13/pflag"
)

// unsupported are the flags of docker run that hyper parses and refuses, so
// that a command line of Docker's never means less than it says. A flag
// leaves this table when it works.
var unsupported = []struct {
	name, short, kind, usage string
	same                     []string // values that ask for what happens anyway
}{
	{name: "blkio-weight", kind: "uint16", usage: "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)", same: []string{"0"}},
	{name: "blkio-weight-device", kind: "list", usage: "Block IO weight (relative device weight)"},
	{name: "cgroup-parent", kind: "string", usage: "Optional parent cgroup for the container"},
	{name: "cgroupns", kind: "string", usage: "Cgroup namespace to use (host|private)", same: []string{"", "private"}},
	{name: "cpu-count", kind: "int", usage: "CPU count (Windows only)", same: []string{"0"}},
	{name: "cpu-percent", kind: "int", usage: "CPU percent (Windows only)", same: []string{"0"}},
	{name: "cpu-rt-period", kind: "int", usage: "Limit CPU real-time period in microseconds", same: []string{"0"}},
	{name: "cpu-rt-runtime", kind: "int", usage: "Limit CPU real-time runtime in microseconds", same: []string{"0"}},
	{name: "cpuset-mems", kind: "string", usage: "MEMs in which to allow execution (0-3, 0,1)", same: []string{""}},
	{name: "device", kind: "list", usage: "Add a host device to the container"},
	{name: "device-cgroup-rule", kind: "list", usage: "Add a rule to the cgroup allowed devices list"},
	{name: "gpus", kind: "gpu-request", usage: "GPU devices to add to the container ('all' to pass all GPUs)"},
	{name: "health-cmd", kind: "string", usage: "Command to run to check health", same: []string{""}},
	{name: "health-interval", kind: "duration", usage: "Time between running the check (ms|s|m|h) (default 0s)", same: []string{"0", "0s"}},
	{name: "health-retries", kind: "int", usage: "Consecutive failures needed to report unhealthy", same: []string{"0"}},
	{name: "health-start-interval", kind: "duration", usage: "Time between running the check during the start period (ms|s|m|h) (default 0s)", same: []string{"0", "0s"}},
	{name: "health-start-period", kind: "duration", usage: "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h) (default 0s)", same: []string{"0", "0s"}},
	{name: "health-timeout", kind: "duration", usage: "Maximum time to allow one check to run (ms|s|m|h) (default 0s)", same: []string{"0", "0s"}},
	{name: "io-maxbandwidth", kind: "bytes", usage: "Maximum IO bandwidth limit for the system drive (Windows only)", same: []string{"0"}},
	{name: "io-maxiops", kind: "uint", usage: "Maximum IOps limit for the system drive (Windows only)", same: []string{"0"}},
	{name: "ip", kind: "string", usage: "IPv4 address (e.g., 172.30.100.104)"},
	{name: "ip6", kind: "string", usage: "IPv6 address (e.g., 2001:db8::33)"},
	{name: "isolation", kind: "string", usage: "Container isolation technology", same: []string{"", "default"}},
	{name: "kernel-memory", kind: "bytes", usage: "Kernel memory limit", same: []string{"0"}},
	{name: "link", kind: "list", usage: "Add link to another container"},
	{name: "link-local-ip", kind: "list", usage: "Container IPv4/IPv6 link-local addresses"},
	{name: "mac-address", kind: "string", usage: "Container MAC address (e.g., 92:d0:c6:0a:29:33)"},
	{name: "memory-swappiness", kind: "int", usage: "Tune container memory swappiness (0 to 100) (default -1)", same: []string{"-1"}},
	{name: "mount", kind: "mount", usage: "Attach a filesystem mount to the container"},
	{name: "network-alias", kind: "list", usage: "Add network-scoped alias for the container"},
	{name: "oom-kill-disable", kind: "bool", usage: "Disable OOM Killer", same: []string{"false"}},
	{name: "publish", short: "p", kind: "list", usage: "Publish a container's port(s) to the host"},
	{name: "publish-all", short: "P", kind: "bool", usage: "Publish all exposed ports to random ports", same: []string{"false"}},
	{name: "runtime", kind: "string", usage: "Runtime to use for this container", same: []string{""}},
	{name: "umask", kind: "octal", usage: "Set umask for the container"},
	{name: "use-api-socket", kind: "bool", usage: "Bind mount API socket and required auth", same: []string{"false"}},
	{name: "userns", kind: "string", usage: "User namespace to use", same: []string{""}},
	{name: "uts", kind: "string", usage: "UTS namespace to use", same: []string{""}},
	{name: "volume", short: "v", kind: "list", usage: "Bind mount a volume"},
	{name: "volume-driver", kind: "string", usage: "Optional volume driver for the container", same: []string{""}},
	{name: "volumes-from", kind: "list", usage: "Mount volumes from the specified container(s)"},
}

// ErrUnsupported is what a flag gives that cannot work yet.
type ErrUnsupported struct{ Flag string }

func (e ErrUnsupported) Error() string { return "--" + e.Flag + " is not supported yet" }

// refused takes any value of a flag.
type refused struct {
	kind   string
	values []string
}

func (r *refused) Set(s string) error { r.values = append(r.values, s); return nil }
func (r *refused) Type() string       { return r.kind }
func (r *refused) String() string     { return "" }

// addUnsupported declares those flags; with names, only some of them.
func addUnsupported(fs *pflag.FlagSet, names ...string) {
	for _, u := range unsupported {
		if len(names) > 0 && !slices.Contains(names, u.name) {
			continue
		}
		f := fs.VarPF(&refused{kind: u.kind}, u.name, u.short, u.usage+" [not supported yet]")
		if u.kind == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// checkUnsupported names the first flag that was given and cannot work.
func checkUnsupported(fs *pflag.FlagSet) error {
	for _, u := range unsupported {
		f := fs.Lookup(u.name)
		if f == nil || !f.Changed {
			continue
		}
		for _, v := range f.Value.(*refused).values {
			if !slices.Contains(u.same, v) {
				return fmt.Errorf("%w", ErrUnsupported{u.name})
			}
		}
	}
	return nil
}
