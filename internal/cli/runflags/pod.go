package runflags

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/hyper-run/hyper/api"
)

// Pod are the flags that say what a pod shall be. Make one with AddPod.
type Pod struct {
	Name string
	// AutoRemove has the pod go when its last container has ended.
	AutoRemove bool

	fs                                    *pflag.FlagSet
	hostname, domainname, network, kernel string
	labels, labelFile                     list
	kernelArgs, addHost                   list
	dns, dnsSearch, dnsOption             list
	annotations, sysctls                  dict
	memory, shmSize                       size
	cpus                                  nanoCPUs
	sharePID, persist                     bool
	stopTimeout                           int
}

// AddPod declares the flags.
func AddPod(fs *pflag.FlagSet) *Pod {
	p := &Pod{
		fs: fs, labels: list{check: checkLabel}, addHost: list{check: checkHost}, dns: list{check: checkIP},
		dnsSearch: list{check: checkSearch}, sysctls: dict{check: checkSysctl},
	}
	fs.Var(&p.addHost, "add-host", "Add a custom host-to-IP mapping (host:ip)")
	fs.Var(&p.annotations, "annotation", "Add an annotation to the pod")
	fs.Var(&p.cpus, "cpus", "Number of CPUs of all its containers together (default: what they need)")
	fs.Var(&p.dns, "dns", "Set custom DNS servers")
	fs.Var(&p.dnsOption, "dns-option", "Set DNS options")
	fs.Var(&p.dnsSearch, "dns-search", "Set custom DNS search domains")
	fs.StringVar(&p.domainname, "domainname", "", "NIS domain name")
	fs.StringVarP(&p.hostname, "hostname", "h", "", "Host name (default: the pod's name)")
	fs.StringVar(&p.kernel, "kernel", "", "Boot the pod's VM with this kernel (path of a vmlinux or bzImage on the daemon's host, hyperkernel or stock)")
	fs.Var(&p.kernelArgs, "kernel-arg", "Add a parameter to the command line of the VM's kernel")
	fs.VarP(&p.labels, "label", "l", "Set meta data on the pod")
	fs.Var(&p.labelFile, "label-file", "Read in a line delimited file of labels")
	fs.VarP(&p.memory, "memory", "m", "Memory of all its containers together (default: what they need)")
	fs.StringVar(&p.Name, "name", "", "Assign a name to the pod")
	fs.StringVar(&p.network, "network", "bridge", `Connect the pod to a network ("bridge" or "none")`)
	fs.BoolVar(&p.persist, "persist", false, "Start the pod again after the host has started")
	fs.BoolVar(&p.AutoRemove, "rm", false, "Remove the pod when its last container has ended")
	fs.BoolVar(&p.sharePID, "share-pid", false, "One PID namespace for all its containers")
	fs.Var(&p.shmSize, "shm-size", "Size of /dev/shm")
	fs.IntVar(&p.stopTimeout, "stop-timeout", 0, "Timeout (in seconds) to stop containers that have none of their own")
	fs.Var(&p.sysctls, "sysctl", "Sysctl options")
	return p
}

// Request is the request that the flags stand for.
func (p *Pod) Request() (api.PodCreate, error) {
	labels, err := readAll(p.labelFile.values, p.labels.values, nil)
	if err != nil {
		return api.PodCreate{}, fmt.Errorf("--label-file: %w", err)
	}
	kernel, err := kernelPath(p.kernel)
	if err != nil {
		return api.PodCreate{}, err
	}
	s := api.PodSpec{
		Labels: toMap(labels), Annotations: p.annotations.m, Hostname: p.hostname, Domainname: p.domainname, ExtraHosts: p.addHost.values,
		DNS: p.dns.values, DNSSearch: p.dnsSearch.values, DNSOptions: p.dnsOption.values, Network: p.network, Sysctls: p.sysctls.m,
		SharePID: p.sharePID, ShmBytes: p.shmSize.n, MemoryBytes: p.memory.n, NanoCPUs: int64(p.cpus), Kernel: kernel,
		KernelArgs: p.kernelArgs.values, AutoRemove: p.AutoRemove, Persist: p.persist,
	}
	if p.fs.Changed("stop-timeout") {
		s.StopTimeout = &p.stopTimeout
	}
	return api.PodCreate{Name: p.Name, Spec: s}, nil
}

// PodUpdate are the flags of a pod's size. Make one with AddPodUpdate.
type PodUpdate struct {
	memory size
	cpus   nanoCPUs
}

// AddPodUpdate declares the flags.
func AddPodUpdate(fs *pflag.FlagSet) *PodUpdate {
	u := &PodUpdate{}
	fs.Var(&u.cpus, "cpus", "Number of CPUs of all its containers together")
	fs.VarP(&u.memory, "memory", "m", "Memory of all its containers together")
	return u
}

// Request is the request that the flags stand for.
func (u *PodUpdate) Request() (api.PodUpdate, error) {
	r := api.PodUpdate{MemoryBytes: u.memory.n, NanoCPUs: int64(u.cpus)}
	if r == (api.PodUpdate{}) {
		return r, errors.New("you must provide one or more flags when using this command")
	}
	return r, nil
}
