package dockerapi

import (
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	dockerimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/image"
	"github.com/hyper-run/hyper/internal/pod"
)

// driverName is what the root file systems of containers are made with.
const driverName = "erofs+overlay"

func (a *api) ping(c *call) error {
	h := c.w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Swarm", string(swarm.LocalNodeStateInactive))
	// Version 1 keeps clients from opening a BuildKit session here.
	h.Set("Builder-Version", string(build.BuilderV1))
	c.begin("text/plain; charset=utf-8", http.StatusOK)
	if c.r.Method == http.MethodHead {
		return nil
	}
	_, err := c.w.Write([]byte("OK"))
	return err
}

func (a *api) versionInfo(c *call) error {
	in := a.Info()
	v := system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "Hyper"},
		Version:       in.Version,
		APIVersion:    MaxVersion,
		MinAPIVersion: MinVersion,
		Os:            "linux",
		Arch:          runtime.GOARCH,
		GitCommit:     in.Commit,
		GoVersion:     runtime.Version(),
		KernelVersion: in.KernelVersion,
		BuildTime:     in.BuildTime,
		Components: []system.ComponentVersion{{
			Name: "Engine", Version: in.Version,
			Details: map[string]string{
				"ApiVersion": MaxVersion, "MinAPIVersion": MinVersion, "Arch": runtime.GOARCH, "Os": "linux",
				"BuildTime": in.BuildTime, "Experimental": "false", "GitCommit": in.Commit,
				"GoVersion": runtime.Version(), "KernelVersion": in.KernelVersion,
			},
		}},
	}
	for _, p := range in.Components {
		v.Components = append(v.Components, system.ComponentVersion{Name: p.Name, Version: p.Version, Details: p.Details})
	}
	return c.json(http.StatusOK, v)
}

func (a *api) info(c *call) error {
	in := a.Info()
	images, err := a.Images.List(c.ctx())
	if err != nil {
		return err
	}
	out := system.Info{
		ID: in.ID, Name: in.Name, ServerVersion: in.Version, Debug: in.Debug,
		Images: len(images), Driver: driverName, DriverStatus: append([][2]string{}, in.Status...),
		Plugins: system.PluginsInfo{
			Volume: []string{}, Network: []string{"bridge", "null"}, Authorization: []string{}, Log: []string{"json-file", "none"},
		},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		IPv4Forwarding: true, NFd: openFiles(), NGoroutines: runtime.NumGoroutine(), NEventsListener: a.Events.Subscribers(),
		SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: "json-file", CgroupDriver: "none", CgroupVersion: "2",
		KernelVersion: in.KernelVersion, OperatingSystem: in.OperatingSystem, OSVersion: in.OSVersion, OSType: "linux", Architecture: machine(),
		IndexServerAddress: indexServer,
		RegistryConfig: &registry.ServiceConfig{
			InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}, Mirrors: []string{},
			IndexConfigs: map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}},
		},
		NCPU: in.CPUs, MemTotal: in.MemoryBytes, DockerRootDir: in.Root, Labels: []string{},
		Runtimes: map[string]system.RuntimeWithStatus{"hyper": {}}, DefaultRuntime: "hyper",
		Swarm:              swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: true, InitBinary: "hyperstart", SecurityOptions: []string{"name=seccomp,profile=builtin", "name=vm"},
		CDISpecDirs: []string{}, Warnings: notNil(in.Warnings),
	}
	for _, ct := range a.Containers.List(pod.Filter{All: true}) {
		out.Containers++
		switch ct.Status {
		case pod.StatusRunning, pod.StatusRestarting:
			out.ContainersRunning++
		case pod.StatusPaused:
			out.ContainersPaused++
		default:
			out.ContainersStopped++
		}
	}
	return c.json(http.StatusOK, out)
}

// machine is the architecture as uname(2) calls it, which is what Docker's
// info shows.
func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

func openFiles() int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(fds)
}

// legacyDiskUsage is what GET /system/df answered before 1.52, and answers
// beside the newer form unless "verbose" is given.
type legacyDiskUsage struct {
	LayersSize int64
	Images     []imageSummary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
}

func (a *api) diskUsage(c *call) error {
	types := c.form["type"]
	if c.before(42) || len(types) == 0 {
		types = []string{"container", "image", "volume", "build-cache"}
	}
	legacy := &legacyDiskUsage{}
	var usage system.DiskUsage
	for _, t := range types {
		var err error
		switch system.DiskUsageObject(t) {
		case system.ContainerObject:
			usage.ContainerUsage, err = a.containerUsage(c)
			if err == nil {
				legacy.Containers = usage.ContainerUsage.Items
			}
		case system.ImageObject:
			usage.ImageUsage, err = a.imageUsage(c)
			if err == nil {
				legacy.Images, legacy.LayersSize = c.withVirtualSize(usage.ImageUsage.Items), usage.ImageUsage.TotalSize
			}
		case system.VolumeObject:
			usage.VolumeUsage = &volume.DiskUsage{}
			legacy.Volumes = []volume.Volume{}
		case system.BuildCacheObject:
			usage.BuildCacheUsage = &build.DiskUsage{}
			legacy.BuildCache = []build.CacheRecord{}
		default:
			err = invalid("unknown object type: %s", t)
		}
		if err != nil {
			return err
		}
	}
	if c.before(52) {
		return c.json(http.StatusOK, legacy)
	}
	if c.flag("verbose", false) {
		return c.json(http.StatusOK, &usage)
	}
	return c.json(http.StatusOK, struct {
		*legacyDiskUsage
		*system.DiskUsage
	}{legacy, &usage})
}

func (a *api) containerUsage(c *call) (*container.DiskUsage, error) {
	items, err := a.summaries(c, a.Containers.List(pod.Filter{All: true}), true)
	if err != nil {
		return nil, err
	}
	u := &container.DiskUsage{Items: items, TotalCount: int64(len(items))}
	for _, s := range items {
		u.TotalSize += s.SizeRw
		if s.State == container.StateRunning || s.State == container.StatePaused || s.State == container.StateRestarting {
			u.ActiveCount++
		} else {
			u.Reclaimable += s.SizeRw
		}
	}
	return u, nil
}

func (a *api) imageUsage(c *call) (*dockerimage.DiskUsage, error) {
	images, err := a.Images.List(c.ctx())
	if err != nil {
		return nil, err
	}
	u := &dockerimage.DiskUsage{Items: a.imageSummaries(c, images), TotalCount: int64(len(images))}
	for _, s := range u.Items {
		u.TotalSize += s.Size
		if s.Containers > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += s.Size
		}
	}
	return u, nil
}

// diskBytes is how much a sparse file really takes on the host.
func diskBytes(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

func (a *api) listPlugins(c *call) error { return c.json(http.StatusOK, []string{}) }

// imageUsers maps the IDs of images to the containers that were made from them.
func (a *api) imageUsers() map[digest.Digest][]image.Use {
	users := make(map[digest.Digest][]image.Use)
	for _, ct := range a.Containers.List(pod.Filter{All: true}) {
		id := digest.Digest(ct.Spec.ImageID)
		users[id] = append(users[id], image.Use{Container: ct.ID, Running: isRunning(ct)})
	}
	return users
}

// inUse tells the containers made from an image.
func (a *api) inUse() image.InUse {
	users := a.imageUsers()
	return func(id digest.Digest) []image.Use { return users[id] }
}
