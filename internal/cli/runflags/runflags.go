// Package runflags parses the flags that docker run and docker create share,
// and makes the request that they stand for: what Docker's own command would
// send for the same flags, plus those of Hyper, which travel as annotations.
//
// A flag either does what it does in Docker or is refused by name.
package runflags

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

// Annotations that carry flags of Hyper: the path of --kernel, and --pod.
const (
	KernelAnnotation = "run.hyper.kernel"
	PodAnnotation    = "hyper.pod"
)

// Flags are the values of the flags. Make one with Add.
type Flags struct {
	CIDFile    string
	AutoRemove bool

	fs *pflag.FlagSet

	// Config
	hostname, domainname, user, workdir, entrypoint, stopSignal string
	stopTimeout                                                 int
	stdin, tty, noHealthcheck, init                             bool
	env, envFile, labels, labelFile, expose, attach             list

	// HostConfig
	networks, addHost, dns, dnsSearch, dnsOption   list
	capAdd, capDrop, groupAdd, securityOpt, tmpfs  list
	logOpt, storageOpt                             list
	logDriver, kernel, pod, ipc, pid, restart      string
	privileged, readOnly, contentTrust             bool
	sysctls, annotations                           dict
	shmSize, memory, memoryReservation, memorySwap size
	cpus                                           nanoCPUs
	cpuShares, cpuPeriod, cpuQuota, pidsLimit      int64
	cpusetCPUs                                     string
	oomScoreAdj                                    int
	ulimits                                        ulimits
	readBps, writeBps, readIOps, writeIOps         throttles
}

// Add declares the flags.
func Add(fs *pflag.FlagSet) *Flags {
	f := &Flags{
		fs:         fs,
		attach:     list{check: checkStream},
		env:        list{check: checkEnv},
		labels:     list{check: checkLabel},
		addHost:    list{check: checkHost},
		dns:        list{check: checkIP},
		dnsSearch:  list{check: checkSearch},
		sysctls:    dict{check: checkSysctl},
		memorySwap: size{minusOne: true},
		readBps:    throttles{bytes: true},
		writeBps:   throttles{bytes: true},
	}
	f.addProcess(fs)
	f.addHostFlags(fs)
	f.addLimits(fs)
	f.addResources(fs)
	addUnsupported(fs)
	return f
}

func (f *Flags) addProcess(fs *pflag.FlagSet) {
	fs.VarP(&f.attach, "attach", "a", "Attach to STDIN, STDOUT or STDERR")
	fs.StringVar(&f.CIDFile, "cidfile", "", "Write the container ID to the file")
	fs.BoolVar(&f.AutoRemove, "rm", false, "Automatically remove the container and its associated anonymous volumes when it exits")
	fs.StringVarP(&f.hostname, "hostname", "h", "", "Container host name")
	fs.StringVar(&f.domainname, "domainname", "", "Container NIS domain name")
	fs.StringVarP(&f.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	fs.StringVar(&f.stopSignal, "stop-signal", "", "Signal to stop the container")
	fs.IntVar(&f.stopTimeout, "stop-timeout", 0, "Timeout (in seconds) to stop a container")
	fs.BoolVarP(&f.stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.BoolVarP(&f.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.BoolVar(&f.noHealthcheck, "no-healthcheck", false, "Disable any container-specified HEALTHCHECK")
	fs.BoolVar(&f.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	fs.VarP(&f.env, "env", "e", "Set environment variables")
	fs.Var(&f.envFile, "env-file", "Read in a file of environment variables")
	fs.VarP(&f.labels, "label", "l", "Set meta data on a container")
	fs.Var(&f.labelFile, "label-file", "Read in a line delimited file of labels")
	fs.Var(&f.expose, "expose", "Expose a port or a range of ports")
}

func (f *Flags) addHostFlags(fs *pflag.FlagSet) {
	fs.Var(&f.networks, "network", "Connect a container to a network")
	fs.Var(&f.networks, "net", "Connect a container to a network")
	fs.Lookup("net").Hidden = true
	fs.Var(&f.addHost, "add-host", "Add a custom host-to-IP mapping (host:ip)")
	fs.Var(&f.dns, "dns", "Set custom DNS servers")
	fs.Var(&f.dnsSearch, "dns-search", "Set custom DNS search domains")
	fs.Var(&f.dnsOption, "dns-option", "Set DNS options")
	fs.Var(&f.dnsOption, "dns-opt", "Set DNS options")
	fs.Lookup("dns-opt").Hidden = true
	fs.Var(&f.capAdd, "cap-add", "Add Linux capabilities")
	fs.Var(&f.capDrop, "cap-drop", "Drop Linux capabilities")
	fs.BoolVar(&f.privileged, "privileged", false, "Give extended privileges to this container")
	fs.Var(&f.groupAdd, "group-add", "Add additional groups to join")
	fs.Var(&f.securityOpt, "security-opt", "Security Options")
	fs.BoolVar(&f.readOnly, "read-only", false, "Mount the container's root filesystem as read only")
	fs.Var(&f.tmpfs, "tmpfs", "Mount a tmpfs directory")
	fs.Var(&f.shmSize, "shm-size", "Size of /dev/shm")
	fs.Var(&f.storageOpt, "storage-opt", "Storage driver options for the container")
	fs.StringVar(&f.logDriver, "log-driver", "", "Logging driver for the container")
	fs.Var(&f.logOpt, "log-opt", "Log driver options")
	fs.Var(&f.sysctls, "sysctl", "Sysctl options")
	fs.Var(&f.annotations, "annotation", "Add an annotation to the container (passed through to the OCI runtime)")
	fs.StringVar(&f.kernel, "kernel", "", "Boot the container's VM with this kernel (path of a vmlinux or bzImage on the daemon's host, hyperkernel or stock)")
	fs.StringVar(&f.pod, "pod", "", "Run the container in this pod, beside its other containers (name or ID)")
	fs.StringVar(&f.ipc, "ipc", "", "IPC mode to use (private, shareable or container:NAME)")
	fs.StringVar(&f.pid, "pid", "", "PID namespace to use (container:NAME, or pod for that of all in the pod)")
	fs.StringVar(&f.restart, "restart", "no", "Restart policy to apply when a container exits")
	fs.BoolVar(&f.contentTrust, "disable-content-trust", true, "Skip image verification")
	fs.Lookup("disable-content-trust").Hidden = true
}

// addLimits declares the limits that can be changed later.
func (f *Flags) addLimits(fs *pflag.FlagSet) {
	fs.VarP(&f.memory, "memory", "m", "Memory limit")
	fs.Var(&f.memoryReservation, "memory-reservation", "Memory soft limit")
	fs.Var(&f.memorySwap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	fs.Var(&f.cpus, "cpus", "Number of CPUs")
	fs.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fs.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fs.Int64Var(&f.pidsLimit, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
}

func (f *Flags) addResources(fs *pflag.FlagSet) {
	fs.Var(&f.readBps, "device-read-bps", "Limit read rate (bytes per second) from a device (/ is the container's own disk)")
	fs.Var(&f.readIOps, "device-read-iops", "Limit read rate (IO per second) from a device")
	fs.Var(&f.writeBps, "device-write-bps", "Limit write rate (bytes per second) to a device")
	fs.Var(&f.writeIOps, "device-write-iops", "Limit write rate (IO per second) to a device")
	fs.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "Tune host's OOM preferences (-1000 to 1000)")
	fs.Var(&f.ulimits, "ulimit", "Ulimit options")
}

// Request is the request for an image and the arguments after it.
func (f *Flags) Request(image string, args []string) (client.ContainerCreateOptions, error) {
	var none client.ContainerCreateOptions
	if err := checkUnsupported(f.fs); err != nil {
		return none, err
	}
	if !f.contentTrust {
		return none, ErrUnsupported{"disable-content-trust=false"}
	}
	cfg, err := f.config(image, args)
	if err != nil {
		return none, err
	}
	host, err := f.hostConfig()
	if err != nil {
		return none, err
	}
	mode, err := f.network()
	if err != nil {
		return none, err
	}
	host.NetworkMode = container.NetworkMode(mode)
	endpoints := map[string]*network.EndpointSettings{}
	if len(f.networks.values) == 0 {
		endpoints[network.NetworkDefault] = &network.EndpointSettings{}
	}
	return client.ContainerCreateOptions{
		Config:           cfg,
		HostConfig:       host,
		NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: endpoints},
	}, nil
}

func (f *Flags) config(image string, args []string) (*container.Config, error) {
	env, err := ReadEnv(f.envFile.values, f.env.values)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	labels, err := readAll(f.labelFile.values, f.labels.values, nil)
	if err != nil {
		return nil, fmt.Errorf("--label-file: %w", err)
	}
	ports := network.PortSet{}
	for _, e := range f.expose.values {
		r, err := network.ParsePortRange(e)
		if err != nil {
			return nil, fmt.Errorf("--expose: %w", err)
		}
		for p := range r.All() {
			ports[p] = struct{}{}
		}
	}
	c := &container.Config{
		Hostname: f.hostname, Domainname: f.domainname, User: f.user, WorkingDir: f.workdir,
		Image: image, Env: env, Labels: toMap(labels), ExposedPorts: ports, StopSignal: f.stopSignal,
		Tty: f.tty, OpenStdin: f.stdin,
		AttachStdin:  f.stdin || f.attaches("stdin"),
		AttachStdout: len(f.attach.values) == 0 || f.attaches("stdout"),
		AttachStderr: len(f.attach.values) == 0 || f.attaches("stderr"),
		Volumes:      map[string]struct{}{},
	}
	c.StdinOnce = c.OpenStdin && c.AttachStdin
	if len(args) > 0 {
		c.Cmd = args
	}
	if f.fs.Changed("entrypoint") { // "" takes the image's away
		c.Entrypoint = []string{f.entrypoint}
	}
	if f.fs.Changed("stop-timeout") {
		c.StopTimeout = &f.stopTimeout
	}
	if f.noHealthcheck {
		c.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
	}
	return c, nil
}

func (f *Flags) attaches(stream string) bool {
	return slices.Contains(f.attach.values, stream)
}

func (f *Flags) hostConfig() (*container.HostConfig, error) {
	security, unmasked, err := securityOptions(f.securityOpt.values)
	if err != nil {
		return nil, err
	}
	if f.logDriver == "none" && len(f.logOpt.values) > 0 {
		return nil, errors.New("--log-opt: the log driver none has no options")
	}
	restart, err := restartPolicy(f.restart)
	if err != nil {
		return nil, err
	}
	if f.AutoRemove && !restart.IsNone() {
		return nil, errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	storage := map[string]string{}
	for _, o := range f.storageOpt.values {
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			return nil, fmt.Errorf("--storage-opt: %q is not NAME=VALUE", o)
		}
		storage[k] = v
	}
	annotations, err := f.allAnnotations()
	if err != nil {
		return nil, err
	}
	tmpfs := map[string]string{}
	for _, t := range f.tmpfs.values {
		path, options, _ := strings.Cut(t, ":")
		tmpfs[path] = options
	}
	h := &container.HostConfig{
		ContainerIDFile: f.CIDFile, AutoRemove: f.AutoRemove, Privileged: f.privileged,
		PortBindings: network.PortMap{}, DNS: addresses(f.dns.values), DNSSearch: f.dnsSearch.orEmpty(), DNSOptions: f.dnsOption.orEmpty(),
		ExtraHosts: f.addHost.values, CapAdd: f.capAdd.values, CapDrop: f.capDrop.values, GroupAdd: f.groupAdd.values,
		SecurityOpt: security, StorageOpt: storage, ReadonlyRootfs: f.readOnly,
		LogConfig: container.LogConfig{Type: f.logDriver, Config: toMap(f.logOpt.values)},
		ShmSize:   f.shmSize.n, Tmpfs: tmpfs, Sysctls: f.sysctls.orEmpty(), Annotations: annotations,
		OomScoreAdj: f.oomScoreAdj, Resources: f.resources(),
		RestartPolicy: restart, IpcMode: container.IpcMode(f.ipc), PidMode: container.PidMode(f.pid),
	}
	if unmasked {
		h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
	}
	if f.fs.Changed("init") {
		h.Init = &f.init
	}
	return h, nil
}

func (f *Flags) resources() container.Resources {
	var swappiness int64 = -1
	var oomKillDisable bool
	return container.Resources{
		Memory: f.memory.n, MemoryReservation: f.memoryReservation.n, MemorySwap: f.memorySwap.n,
		NanoCPUs: int64(f.cpus), CPUShares: f.cpuShares, CPUPeriod: f.cpuPeriod, CPUQuota: f.cpuQuota, CpusetCpus: f.cpusetCPUs,
		PidsLimit: &f.pidsLimit, Ulimits: f.ulimits.sorted(),
		BlkioDeviceReadBps: f.readBps.list, BlkioDeviceWriteBps: f.writeBps.list,
		BlkioDeviceReadIOps: f.readIOps.list, BlkioDeviceWriteIOps: f.writeIOps.list,
		// Docker's command sends these defaults too.
		MemorySwappiness: &swappiness, OomKillDisable: &oomKillDisable, Devices: []container.DeviceMapping{},
	}
}

// network is the name of the network to join.
func (f *Flags) network() (string, error) {
	switch nets := f.networks.values; {
	case len(nets) == 0:
		return network.NetworkDefault, nil
	case len(nets) > 1:
		return "", ErrUnsupported{"network, more than once,"}
	case strings.TrimSpace(nets[0]) == "":
		return "", errors.New("--network: no name set for network")
	case strings.Contains(nets[0], "="):
		return "", ErrUnsupported{"network with options"}
	default:
		return nets[0], nil
	}
}

func (f *Flags) allAnnotations() (map[string]string, error) {
	a := f.annotations.orEmpty()
	if f.pod != "" {
		a[PodAnnotation] = f.pod
	}
	if f.kernel == "" {
		return a, nil
	}
	var err error
	a[KernelAnnotation], err = kernelPath(f.kernel)
	return a, err
}

// kernelPath is what --kernel means to the daemon, which knows two by name.
func kernelPath(k string) (string, error) {
	if k == "" || k == "hyperkernel" || k == "stock" {
		return k, nil
	}
	path, err := filepath.Abs(k)
	if err != nil {
		return "", fmt.Errorf("--kernel: %w", err)
	}
	return path, nil
}

// restartPolicy reads --restart: NAME[:MAXIMUM].
func restartPolicy(s string) (p container.RestartPolicy, err error) {
	if s == "" {
		return container.RestartPolicy{Name: container.RestartPolicyDisabled}, nil
	}
	name, most, limited := strings.Cut(s, ":")
	if name == "" {
		return p, errors.New("invalid restart policy format: no policy provided before colon")
	}
	p.Name = container.RestartPolicyMode(name)
	if limited {
		if p.MaximumRetryCount, err = strconv.Atoi(most); err != nil {
			return p, errors.New("invalid restart policy format: maximum retry count must be an integer")
		}
	}
	return p, nil
}

// securityOptions reads seccomp profiles into the options; unmasked says that
// systempaths=unconfined was among them.
func securityOptions(opts []string) (out []string, unmasked bool, err error) {
	for _, o := range opts {
		name, value, ok := strings.Cut(o, "=")
		if !ok {
			name, value, ok = strings.Cut(o, ":")
		}
		switch {
		case name == "no-new-privileges":
		case !ok || value == "":
			return nil, false, fmt.Errorf("invalid --security-opt: %q", o)
		case o == "systempaths=unconfined":
			unmasked = true
			continue
		case name == "seccomp" && value != "unconfined" && value != "builtin":
			profile, err := os.ReadFile(value)
			if err != nil {
				return nil, false, fmt.Errorf("seccomp profile: %w", err)
			}
			var b bytes.Buffer
			if err := json.Compact(&b, profile); err != nil {
				return nil, false, fmt.Errorf("seccomp profile %s: %w", value, err)
			}
			o = "seccomp=" + b.String()
		}
		out = append(out, o)
	}
	return out, unmasked, nil
}

func toMap(pairs []string) map[string]string {
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		m[k] = v
	}
	return m
}

func addresses(ips []string) []netip.Addr {
	out := []netip.Addr{}
	for _, s := range ips {
		if a, err := netip.ParseAddr(s); err == nil { // checked by checkIP
			out = append(out, a)
		}
	}
	return out
}

// Attached says whether --attach was given.
func (f *Flags) Attached() bool { return len(f.attach.values) > 0 }

// SetPod has the container made in a pod, as --pod does.
func (f *Flags) SetPod(ref string) { f.pod = ref }
