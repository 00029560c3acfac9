package hyperd

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/dockerapi"
)

func hostCPUs() int { return runtime.NumCPU() }

// info describes this daemon and its host.
func (d *daemon) info() dockerapi.Info {
	host, _ := os.Hostname()
	var uts unix.Utsname
	var mem unix.Sysinfo_t
	unix.Uname(&uts)   //nolint:errcheck // can't fail with a valid pointer
	unix.Sysinfo(&mem) //nolint:errcheck // likewise
	osName, osVersion := osRelease("/etc/os-release")
	i := dockerapi.Info{
		ID: machineID(), Name: host, Version: d.cfg.Version, Root: d.cfg.Layout.Root, Started: d.start, Debug: d.cfg.Debug,
		KernelVersion: unix.ByteSliceToString(uts.Release[:]), OperatingSystem: osName, OSVersion: osVersion,
		CPUs: hostCPUs(), MemoryBytes: int64(mem.Totalram) * int64(mem.Unit),
	}
	d.describeVMs(&i)
	d.describeNetwork(&i)
	return i
}

func (d *daemon) describeVMs(i *dockerapi.Info) {
	add := func(k, v string) { i.Status = append(i.Status, [2]string{k, v}) }
	if d.capsErr != nil {
		add("VMM", "none")
		i.Warnings = append(i.Warnings, "WARNING: "+d.capsErr.Error())
	} else {
		add("VMM", d.driver.Name()+" "+d.caps.Version)
		add("Accelerator", string(d.caps.Accel)+" ("+d.caps.AccelWhy+")")
		i.Components = append(i.Components, dockerapi.Component{Name: d.driver.Name(), Version: d.caps.Version})
	}
	files, err := d.boot.files("")
	if err != nil {
		add("Guest kernel", "none")
		i.Warnings = append(i.Warnings, "WARNING: "+err.Error())
	} else {
		add("Guest kernel", files.Name+" ("+files.Kernel+")")
		i.Components = append(i.Components, dockerapi.Component{Name: "guest kernel", Version: files.Name})
		if files.Stock && d.cfg.Kernel == "" {
			i.Warnings = append(i.Warnings, "WARNING: HyperKernel is not built; pods boot slower with Debian's kernel (make kernel builds it)")
		}
	}
	add("Hyperstart", d.hyperstartName())
	add("VM size", fmt.Sprintf("%d CPUs, %d MiB; a container without limits sees %d CPUs and can use %d MiB", d.cfg.VMCPUs, d.cfg.VMMemMiB, d.cfg.CPUs, d.cfg.MemMiB))
	if d.templates == nil {
		add("Templates", "off")
	} else {
		add("Templates", strconv.Itoa(len(d.templates.List())))
	}
	ready, wanted := d.pods.Warm()
	add("Warm VMs", fmt.Sprintf("%d of %d", ready, wanted))
	if d.netErr != nil {
		i.Warnings = append(i.Warnings, "WARNING: no network: "+d.netErr.Error())
	}
}

// describeNetwork tells the default network's bridge and subnets, as the
// interface has them.
func (d *daemon) describeNetwork(i *dockerapi.Info) {
	i.Network.Bridge = bridgeName(d.cfg)
	link, err := net.InterfaceByName(i.Network.Bridge)
	if err != nil {
		return // made with the first pod
	}
	i.Network.MTU = link.MTU
	addrs, err := link.Addrs()
	if err != nil {
		d.log.Debug("addresses of the bridge", "err", err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		i.Network.Subnets = append(i.Network.Subnets, p.Masked())
		i.Network.Gateways = append(i.Network.Gateways, p.Addr())
	}
}

// machineID names the host, as Docker's ID does.
func machineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// osRelease reads PRETTY_NAME and VERSION_ID, os-release(5).
func osRelease(path string) (name, version string) {
	name = "Linux"
	f, err := os.Open(path)
	if err != nil {
		return name, ""
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		k, v, _ := strings.Cut(sc.Text(), "=")
		if u, err := strconv.Unquote(v); err == nil {
			v = u
		}
		switch k {
		case "PRETTY_NAME":
			name = v
		case "VERSION_ID":
			version = v
		}
	}
	return name, version
}
