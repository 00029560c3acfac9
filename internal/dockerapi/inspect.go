package dockerapi

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/distribution/reference"
	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/hyper-run/hyper/internal/pod"
)

// inspectResponse is Docker's, with what Hyper adds.
type inspectResponse struct {
	*container.InspectResponse
	NetworkSettings networkSettings
	Hyper           hyperInfo
}

// hyperInfo is Hyper's own part of an inspect answer.
type hyperInfo struct {
	Pod     string   `json:"pod"`
	PodName string   `json:"podName,omitempty"` // of a pod that was made as such
	Disk    string   `json:"disk"`              // the writable disk, on the host
	VM      *vm      `json:"vm,omitempty"`      // while it runs
	Why     *pod.Why `json:"why,omitempty"`     // it ended, or didn't start
}

type vm struct {
	*pod.VMInfo
	BootTime string `json:"bootTime"` // readable, in place of nanoseconds
}

type networkSettings struct {
	*container.NetworkSettings
	*legacyEndpoint
}

// legacyEndpoint repeats the default network's endpoint, for clients before 1.52.
type legacyEndpoint struct {
	EndpointID          string
	Gateway             netip.Addr
	GlobalIPv6Address   netip.Addr
	GlobalIPv6PrefixLen int
	IPAddress           netip.Addr
	IPPrefixLen         int
	IPv6Gateway         netip.Addr
	MacAddress          network.HardwareAddr
}

func (a *api) inspect(c *call) error {
	ct, err := a.Containers.Get(c.name)
	if err != nil {
		return err
	}
	edge := edgeOf(ct)
	out := inspectResponse{
		InspectResponse: &container.InspectResponse{
			ID: ct.ID, Created: ct.Created.UTC().Format(time.RFC3339Nano), Args: []string{}, State: state(ct), Image: ct.Spec.ImageID,
			LogPath: ct.LogPath, Name: "/" + ct.Name, RestartCount: ct.RestartCount, Driver: driverName, Platform: "linux",
			ExecIDs: ct.Execs, HostConfig: edge.Host, Config: edge.Config, Mounts: mounts(edge.Host),
			GraphDriver: &storage.DriverData{Name: driverName, Data: map[string]string{"Disk": ct.Disk}},
		},
		NetworkSettings: networkSettings{NetworkSettings: &container.NetworkSettings{Ports: network.PortMap{}, Networks: endpoints(ct)}},
		Hyper:           hyperInfo{Pod: ct.PodID, Disk: ct.Disk},
	}
	a.inspectPod(c.ctx(), ct, &out)
	if len(ct.Spec.Args) > 0 {
		out.Path, out.Args = ct.Spec.Args[0], slices.Clone(ct.Spec.Args[1:])
	}
	if isRunning(ct) {
		out.NetworkSettings.SandboxID = hashID("sandbox " + ct.ID)
		for p := range edge.Config.ExposedPorts {
			out.NetworkSettings.Ports[p] = nil // exposed, not published
		}
	}
	if ct.VM != nil {
		out.Hyper.VM = &vm{ct.VM, ct.VM.BootTime.Round(time.Millisecond).String()}
	}
	if ep := out.NetworkSettings.Networks[bridgeName]; ep != nil && c.before(52) {
		out.NetworkSettings.legacyEndpoint = &legacyEndpoint{
			ep.EndpointID, ep.Gateway, ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen, ep.IPAddress, ep.IPPrefixLen, ep.IPv6Gateway, ep.MacAddress,
		}
	}
	if c.flag("size", false) {
		rw := diskBytes(ct.Disk)
		root := rw
		if img, err := a.Images.Resolve(c.ctx(), ct.Spec.ImageID); err == nil {
			root += img.Size
		}
		out.SizeRw, out.SizeRootFs = &rw, &root
	}
	return c.json(http.StatusOK, out)
}

// inspectPod adds what there is to say of the container's pod, and why the
// container ended. Neither is worth an error.
func (a *api) inspectPod(ctx context.Context, ct pod.Container, out *inspectResponse) {
	if p, err := a.Containers.GetPod(ct.PodID); err == nil && p.Name != "" {
		out.Hyper.PodName = p.Name
		out.Config.Hostname = cmp.Or(p.Spec.Hostname, p.Name)
	}
	if ct.Status == pod.StatusRunning || ct.Status == pod.StatusPaused || ct.Status == pod.StatusCreated && ct.Error == "" {
		return
	}
	if why, err := a.Containers.Why(ctx, ct.ID); err == nil {
		out.Hyper.Why = &why
	}
}

func state(ct pod.Container) *container.State {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	s := &container.State{
		Status: container.ContainerState(ct.Status), Running: isRunning(ct), Paused: ct.Status == pod.StatusPaused,
		Restarting: ct.Status == pod.StatusRestarting, OOMKilled: ct.OOMKilled, Dead: ct.Status == pod.StatusDead,
		ExitCode: ct.ExitCode, Error: ct.Error, StartedAt: stamp(ct.StartedAt), FinishedAt: stamp(ct.FinishedAt),
	}
	if s.Running {
		s.Pid = int(ct.PID)
	}
	return s
}

// edgeOf is what the container was created with, its limits as they are now.
// Of a container that another edge made it is what its spec says.
func edgeOf(ct pod.Container) edgeRecord {
	var e edgeRecord
	if err := json.Unmarshal(ct.Spec.Edge, &e); err != nil || e.Config == nil || e.Host == nil {
		e = fromSpec(ct.Spec)
	}
	if e.Config.Hostname == "" {
		e.Config.Hostname = ct.ID[:min(12, len(ct.ID))]
	}
	r, h := ct.Spec.Resources, e.Host
	h.Memory, h.MemorySwap, h.MemoryReservation, h.NanoCPUs = r.MemoryBytes, r.MemorySwapBytes, r.MemoryReservationBytes, r.NanoCPUs
	h.CPUShares, h.CPUPeriod, h.CPUQuota, h.CpusetCpus = int64(r.CPUShares), int64(r.CPUPeriodUs), r.CPUQuotaUs, r.CPUSet
	if h.PidsLimit = nil; r.PIDs > 0 {
		h.PidsLimit = &r.PIDs
	}
	h.BlkioDeviceReadBps, h.BlkioDeviceWriteBps = throttle(r.IO.ReadBytes), throttle(r.IO.WriteBytes)
	h.BlkioDeviceReadIOps, h.BlkioDeviceWriteIOps = throttle(r.IO.Reads), throttle(r.IO.Writes)
	restart := ct.Spec.Restart
	h.RestartPolicy = container.RestartPolicy{
		Name: cmp.Or(container.RestartPolicyMode(restart.Policy), container.RestartPolicyDisabled), MaximumRetryCount: restart.Max,
	}
	return e
}

func throttle(rate uint64) []*blkiodev.ThrottleDevice {
	if rate == 0 {
		return nil
	}
	return []*blkiodev.ThrottleDevice{{Path: "/", Rate: rate}}
}

func fromSpec(s pod.Spec) edgeRecord {
	h := &container.HostConfig{
		NetworkMode: container.NetworkMode(networkName(s)), AutoRemove: s.AutoRemove, CapAdd: s.CapAdd, CapDrop: s.CapDrop,
		Privileged: s.Privileged, ReadonlyRootfs: s.ReadOnly, Tmpfs: s.Tmpfs, ShmSize: s.ShmBytes, Sysctls: s.Sysctls,
		LogConfig: container.LogConfig{Type: s.Log.Driver}, Init: &s.Init, OomScoreAdj: s.OOMScoreAdj, ConsoleSize: s.ConsoleSize,
		ExtraHosts: s.ExtraHosts, GroupAdd: s.Groups, DNSSearch: s.DNSSearch, DNSOptions: s.DNSOptions,
	}
	for _, u := range s.Ulimits {
		h.Ulimits = append(h.Ulimits, &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	setHostDefaults(h)
	return edgeRecord{Host: h, Config: &container.Config{
		Hostname: s.Hostname, Domainname: s.Domainname, User: s.User, Tty: s.TTY, OpenStdin: s.Stdin, StdinOnce: s.StdinOnce, Env: s.Env,
		Cmd: s.Args, Image: s.Image, WorkingDir: s.Dir, Labels: s.Labels, StopSignal: s.StopSignal, StopTimeout: s.StopTimeout,
	}}
}

// mounts are what was asked for with Mounts; Docker does not list Tmpfs here.
func mounts(h *container.HostConfig) []container.MountPoint {
	out := []container.MountPoint{}
	for _, m := range h.Mounts {
		out = append(out, container.MountPoint{Type: mount.TypeTmpfs, Destination: path.Clean(m.Target), RW: !m.ReadOnly})
	}
	return out
}

// familiar is a reference as docker shows it: nginx:latest.
func familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}
