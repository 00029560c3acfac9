// Package hyperd is the daemon: it wires the parts, is the only importer of
// drivers, and runs until told to stop. Pods go on without it; the next
// hyperd finds them again.
package hyperd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/dockerapi"
	"github.com/hyper-run/hyper/internal/doctor"
	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/host"
	"github.com/hyper-run/hyper/internal/image"
	"github.com/hyper-run/hyper/internal/kube"
	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/bridge"
	"github.com/hyper-run/hyper/internal/pod"
	"github.com/hyper-run/hyper/internal/rest"
	"github.com/hyper-run/hyper/internal/rootfs"
	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
)

// Parts are what a test puts in place of the real ones.
type Parts struct {
	Driver  vmm.Driver     // nil: QEMU
	Network network.Driver // nil: bridge
	Boot    func(kernel string) (pod.BootFiles, error)
	Log     io.Writer // nil: standard error
}

// A daemon is one running hyperd: its parts in the order they were opened,
// and how to close each.
type daemon struct {
	cfg   Config
	log   *slog.Logger
	start time.Time

	driver   vmm.Driver
	caps     vmm.Capabilities
	capsErr  error
	net      network.Driver
	netErr   error
	boot     *bootCache
	layers   *rootfs.Store
	images   *image.Store
	hello    image.Image
	events   *event.Bus
	pods     *pod.Set
	listener net.Listener

	templates *template.Store // nil: VMs can't be cloned here, or must not be
	groups    *host.Groups
	metrics   *metrics

	closers []func() error // run last to first
}

// Run runs a hyperd until ctx ends. It returns nil when it was told to stop.
func Run(ctx context.Context, cfg Config, parts Parts) error {
	switch {
	case cfg.RemoveNetwork:
		return removeNetwork(ctx, cfg)
	case cfg.Doctor:
		return examine(ctx, cfg, os.Stdout)
	}
	d := &daemon{cfg: cfg, start: time.Now(), events: new(event.Bus)}
	d.log = logger(cfg, parts.Log)
	err := d.open(ctx, parts)
	if err == nil {
		err = d.serve(ctx)
	}
	for i := len(d.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, d.closers[i]())
	}
	return err
}

func logger(cfg Config, w io.Writer) *slog.Logger {
	if w == nil {
		w = os.Stderr
	}
	level := slog.LevelInfo
	if cfg.Debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

func (d *daemon) onClose(f func() error) { d.closers = append(d.closers, f) }

// open opens the parts, each after what it needs.
func (d *daemon) open(ctx context.Context, parts Parts) error {
	l := d.cfg.Layout
	// Others may pass through Run to the socket, whose mode decides.
	for dir, mode := range map[string]os.FileMode{l.Root: 0o700, l.Run: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	for _, dir := range []string{l.Boot(), l.Containers(), l.AllPodDisks(), l.Templates(), l.Pods(), l.Making()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := d.lock(); err != nil {
		return err
	}
	if err := d.openDrivers(ctx, parts); err != nil {
		return err
	}
	if err := d.openImages(ctx); err != nil {
		return err
	}
	if err := d.openPods(ctx, parts); err != nil {
		return err
	}
	return d.listen()
}

// lock makes sure that there is one hyperd per run directory.
func (d *daemon) lock() error {
	f, err := os.OpenFile(d.cfg.Layout.Lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("another hyperd runs on %s: %w", d.cfg.Layout.Run, err)
	}
	d.onClose(f.Close)
	return nil
}

// openDrivers chooses the drivers: this is the list of them. What a host lacks
// is reported when it is needed, and by info: a daemon that can still show
// logs is better than none.
func (d *daemon) openDrivers(ctx context.Context, parts Parts) error {
	d.driver, d.net = parts.Driver, parts.Network
	if d.driver == nil {
		d.driver = qemu.New(qemu.Options{Binary: d.cfg.QEMU, Accel: d.cfg.Accel})
	}
	d.onClose(func() error { d.driver.Close(); return nil })
	if d.caps, d.capsErr = d.driver.Probe(ctx); d.capsErr != nil {
		d.log.Error("virtual machines can't run here", "err", d.capsErr)
	}
	if d.net == nil {
		n, err := bridge.New(bridgeConfig(d.cfg))
		if err != nil {
			d.log.Error("no network for pods", "err", err)
			d.netErr = err
			return nil
		}
		d.net = n
		d.warnBlockers()
	}
	d.onClose(d.net.Close)
	return nil
}

// examine checks the host and prints what it found; an error when something
// that pods need is missing.
func examine(ctx context.Context, cfg Config, out io.Writer) error {
	driver := qemu.New(qemu.Options{Binary: cfg.QEMU, Accel: cfg.Accel})
	defer driver.Close()
	kernels := boot.DefaultKernels()
	results := doctor.Check(ctx, doctor.Options{
		StateDir: cfg.Layout.Root, Bridge: bridgeName(cfg), VMM: driver.Probe,
		Kernel: func() (string, error) {
			k, err := kernels.Select(cfg.Kernel)
			return k.String() + " (" + k.Path + ")", err
		},
		Hyperstart: cfg.findHyperstart, Network: bridge.Probe,
		Blockers: func() ([]network.Blocker, error) { return bridge.Blockers(bridgeName(cfg)) },
	})
	if err := doctor.Write(out, results); err != nil {
		return err
	}
	if !doctor.Healthy(results) {
		return errors.New("this host lacks what pods need; see above")
	}
	return nil
}

// warnBlockers reports firewalls of others that would drop pods' packets.
func (d *daemon) warnBlockers() {
	blockers, err := bridge.Blockers(bridgeName(d.cfg))
	if err != nil {
		d.log.Debug("look for firewalls", "err", err)
	}
	for _, b := range blockers {
		d.log.Warn("a firewall drops pods' packets", "where", b.Where, "fix", b.Fix)
	}
}

func bridgeName(c Config) string {
	if c.NetPrefix == "" {
		return "hyper0"
	}
	return c.NetPrefix + "0"
}

// bridgeConfig names what the default network has on the host.
func bridgeConfig(c Config) bridge.Config {
	b := bridge.Config{Subnet: c.Subnet, Bridge: bridgeName(c)}
	if p := c.NetPrefix; p != "" {
		b.TapPrefix, b.Table = p, p
	}
	return b
}

// removeNetwork takes away what the default network has on the host.
func removeNetwork(ctx context.Context, c Config) error {
	n, err := bridge.New(bridgeConfig(c))
	if err != nil {
		return err
	}
	return n.Remove(ctx)
}

func (d *daemon) openImages(ctx context.Context) (err error) {
	if d.layers, err = rootfs.Open(d.cfg.Layout.Layers()); err != nil {
		return fmt.Errorf("open layers: %w", err)
	}
	d.images, err = image.Open(ctx, image.Config{
		Dir: d.cfg.Layout.Images(), Sink: d.layers, HostsDir: d.cfg.HostsDir, Mirrors: d.cfg.Mirrors,
		LayersInUse: d.layersInUse,
	})
	if err != nil {
		return fmt.Errorf("open images: %w", err)
	}
	d.onClose(d.images.Close)
	d.hello, err = d.images.EnsureHello(ctx)
	return err
}

func (d *daemon) openPods(ctx context.Context, parts Parts) error {
	durable, err := store.Open(d.cfg.Layout.DB())
	if err != nil {
		return err
	}
	d.onClose(durable.Close)
	runtime, err := store.OpenRuntime(d.cfg.Layout.Run)
	if err != nil {
		return err
	}
	d.onClose(runtime.Close)
	d.boot = &bootCache{cfg: &d.cfg, kernels: boot.DefaultKernels(), dir: d.cfg.Layout.Boot(), known: map[string]bootEntry{}}
	bootFiles := d.boot.files
	if parts.Boot != nil {
		bootFiles = parts.Boot
	}
	if err := d.openTemplates(ctx, bootFiles); err != nil {
		return err
	}
	d.groups = host.NewGroups(host.GroupsConfig{Name: groupsName(d.cfg.Layout.Run), Log: d.log})
	d.onClose(d.groups.Close)
	memory, err := host.NewMemory(host.MemoryConfig{Groups: d.groups})
	if err != nil {
		return err
	}
	d.pods = pod.New(pod.Config{
		Layout: d.cfg.Layout, Store: durable, Runtime: runtime, Driver: d.driver,
		Network: d.net, NetworkErr: d.netErr, Events: d.events, Log: d.log,
		Templates: d.templates, Groups: d.groups, Memory: memory, Meter: d,
		Layers: d.layerFiles, Rehearsal: d.rehearsal, CreateDisk: d.createDisk, Boot: bootFiles, DialGuest: guest.Dial, OpenGuest: guest.Open,
		Accel: d.cfg.Accel, VM: pod.Size{CPUs: d.cfg.VMCPUs, MemMiB: d.cfg.VMMemMiB},
		MemMiB: d.cfg.MemMiB, CPUs: d.cfg.CPUs, HostCPUs: hostCPUs(), Warm: d.cfg.Warm, StartTimeout: d.cfg.BootTimeout,
	})
	d.metrics = newMetrics(d.pods)
	d.onClose(func() error { d.pods.Close(); return nil })
	d.watchMemory(ctx, memory)
	if err := d.pods.Adopt(ctx); err != nil {
		return err
	}
	if p, ok := d.net.(network.Preparer); ok { // knows by now what is in use
		p.Prepare(d.cfg.Warm + sparePorts)
	}
	d.pods.Prepare()
	d.pods.Revive()
	return nil
}

// watchMemory has no VMs kept warm while the host is short of memory.
func (d *daemon) watchMemory(ctx context.Context, m *host.Memory) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Watch(ctx, d.pods.MemoryShort); err != nil {
			d.log.Warn("nobody says when memory gets short", "err", err)
		}
	}()
	d.onClose(func() error { cancel(); <-done; return nil })
}

// groupsName is the parent of the cgroups of this hyperd's VMs; another one
// on the same host must not take them for leftovers.
func groupsName(run string) string {
	if run == store.DefaultLayout.Run {
		return "hyper"
	}
	sum := sha256.Sum256([]byte(run))
	return fmt.Sprintf("hyper-%x", sum[:6])
}

// Started implements pod.Meter.
func (d *daemon) Started(t pod.Trace) { d.metrics.started(t) }

// Wrote implements pod.Meter.
func (d *daemon) Wrote(road pod.Road, s pod.Stage) { d.metrics.stage(road, s) }

// openTemplates opens the templates, if VMs can be cloned here.
func (d *daemon) openTemplates(ctx context.Context, bootFiles func(string) (pod.BootFiles, error)) (err error) {
	if d.cfg.NoTemplates || !d.caps.Clones {
		return nil
	}
	spec, err := pod.OrdinarySpec()
	if err != nil {
		return fmt.Errorf("make ordinary spec: %w", err)
	}
	cfg := template.Config{
		Spec: spec,
		Dir:  d.cfg.Layout.Templates(), RunDir: d.cfg.Layout.Making(), Driver: d.driver, Accel: d.cfg.Accel,
		Log: d.log, Timeout: d.cfg.BootTimeout, Unused: unusedTemplate, DialGuest: guest.Dial,
		Keep: func(s template.Shape) bool {
			files, err := bootFiles("")
			return err == nil && s.Kernel == files.Kernel && s.Initrd == files.Initrd
		},
	}
	if p, ok := d.net.(network.Preparer); ok {
		cfg.Spare = p.Spare
	}
	if d.templates, err = template.Open(ctx, cfg); err != nil {
		return fmt.Errorf("open templates: %w", err)
	}
	d.onClose(func() error { d.templates.Close(); return nil })
	return nil
}

// sparePorts is how many addresses and devices are kept ready beside those of
// warm VMs: as many starts at once need none made.
const sparePorts = 4

// unusedTemplate is how long the memory of a template is kept for nobody.
const unusedTemplate = 24 * time.Hour

// createDisk is pod.Config.CreateDisk.
func (d *daemon) createDisk(path string, bytes int64, scratch bool) error {
	return d.layers.CreateDisk(path, bytes, rootfs.DiskOptions{Scratch: scratch})
}

// layerFiles finds the layers of a container's image; when there are more
// than max, merged into one.
func (d *daemon) layerFiles(ctx context.Context, sp pod.Spec, max int) ([]string, error) {
	if len(sp.Layers) > max {
		return d.mergedLayers(ctx, sp)
	}
	paths := make([]string, len(sp.Layers))
	for i, diff := range sp.Layers {
		var err error
		if paths[i], err = d.layers.Path(diff); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// rehearsal is the image that every hyperd has.
func (d *daemon) rehearsal(context.Context) (pod.Spec, error) {
	return pod.Spec{ImageID: d.hello.ID.String(), Layers: d.hello.Layers(), Args: d.hello.Config.Config.Cmd, Network: "none"}, nil
}

func (d *daemon) mergedLayers(ctx context.Context, sp pod.Spec) ([]string, error) {
	path, err := d.layers.Flatten(ctx, sp.Layers, func(diff digest.Digest) (io.ReadCloser, error) {
		img, err := d.images.Resolve(ctx, sp.ImageID)
		if err != nil {
			return nil, err
		}
		return d.images.LayerTar(ctx, &img, diff)
	})
	if err != nil {
		return nil, err
	}
	return []string{path}, nil
}

// layersInUse are the layers that containers need, whether or not an image
// still has them.
func (d *daemon) layersInUse() []digest.Digest {
	if d.pods == nil {
		return nil
	}
	var used []digest.Digest
	for _, c := range d.pods.List(pod.Filter{All: true}) {
		used = append(used, c.Spec.Layers...)
		used = append(used, identity.ChainID(c.Spec.Layers))
	}
	return used
}

// listen makes the API's socket. The lock is held: a socket that is there
// belongs to nobody.
func (d *daemon) listen() error {
	path := d.cfg.Layout.Socket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	old := unix.Umask(0o177)
	ln, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	d.listener = ln
	return grantGroup(path)
}

// grantGroup lets members of the group "hyper", if there is one, use the
// socket. It gives them root on pods, as group "docker" does with Docker.
func grantGroup(path string) error {
	g, err := user.LookupGroup("hyper")
	if err != nil {
		return nil
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(path, 0o660)
}

// Limits of the API's server. There is none on the whole of a request: attach
// and logs last as long as a container.
const (
	headerTimeout   = 10 * time.Second
	idleTimeout     = 2 * time.Minute
	maxHeaderBytes  = 64 << 10
	shutdownTimeout = 3 * time.Second
)

func (d *daemon) serve(ctx context.Context) error {
	// What the server does not know any more, since a connection was taken
	// over from it, ends with base.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	srv := &http.Server{
		Handler:           d.handler(),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:    slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return base },
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(d.listener) }()
	d.log.Info("hyperd serves", "version", d.cfg.Version, "socket", d.cfg.Layout.Socket(), "after", time.Since(d.start).Round(time.Millisecond))
	if err := ready(); err != nil {
		d.log.Warn("tell that we are ready", "err", err)
	}
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	d.log.Info("hyperd stops; pods run on")
	// No new requests; those that follow something are cut.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		err = srv.Close()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	return nil
}

// handler serves Docker's API, Hyper's own, and what there is to measure.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	native := rest.Config{Pods: d.pods, Play: d.play, Generate: kube.Generate, Log: d.log}
	if d.templates != nil {
		native.Templates = d.templates
	}
	mux.Handle(api.Prefix+"/", rest.New(native))
	mux.Handle("GET /metrics", d.metrics.handler())
	docker := dockerapi.New(dockerapi.Config{
		Containers: d.pods, Images: d.images, Events: d.events, Info: d.info, Log: d.log,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Not by the mux: it would clean paths that name images.
		if strings.HasPrefix(r.URL.Path, api.Prefix+"/") || r.URL.Path == "/metrics" {
			mux.ServeHTTP(w, r)
			return
		}
		docker.ServeHTTP(w, r)
	})
}

// ready tells whoever started us that the API is served: one byte to the
// descriptor named in HYPER_READY_FD.
func ready() error {
	v, ok := os.LookupEnv("HYPER_READY_FD")
	if !ok {
		return nil
	}
	fd, err := strconv.Atoi(v)
	if err != nil {
		return fmt.Errorf("HYPER_READY_FD=%s: %w", v, err)
	}
	f := os.NewFile(uintptr(fd), "ready")
	if f == nil {
		return fmt.Errorf("HYPER_READY_FD=%s: %w", v, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	os.Unsetenv("HYPER_READY_FD") // not for our children
	_, err = f.Write([]byte("\n"))
	return err
}

func (d *daemon) hyperstartName() string {
	p, err := d.cfg.findHyperstart()
	if err != nil {
		return err.Error()
	}
	return filepath.Clean(p)
}
