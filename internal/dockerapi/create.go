package dockerapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/hyper-run/hyper/internal/image"
	"github.com/hyper-run/hyper/internal/pod"
)

// Annotations that are orders to Hyper, not notes.
const (
	annotationPrefix = "run.hyper."
	annotationKernel = annotationPrefix + "kernel" // path of a guest kernel
)

// An edgeRecord is what this edge keeps with a container to answer inspect.
type edgeRecord struct {
	Config *container.Config     `json:"config"`
	Host   *container.HostConfig `json:"host"`
}

func (a *api) create(c *call) error {
	req, err := c.createRequest()
	if err != nil {
		return err
	}
	if err := checkJoinedNetwork(req); err != nil {
		return err
	}
	if err := checkFields(req); err != nil {
		return err
	}
	where, err := a.place(req)
	if err != nil {
		return err
	}
	img, err := a.imageFor(c, req.Config.Image)
	if err != nil {
		return err
	}
	warnings := mergeImage(req.Config, img)
	spec, err := a.spec(req)
	if err != nil {
		return err
	}
	spec.ImageID, spec.Layers = img.ID.String(), img.Layers()
	where.apply(&spec)
	setHostDefaults(req.HostConfig)
	if spec.Edge, err = json.Marshal(edgeRecord{req.Config, req.HostConfig}); err != nil {
		return fmt.Errorf("record request: %w", err)
	}
	id, more, err := a.createIn(c.ctx(), where, pod.CreateOptions{Name: strings.TrimPrefix(c.form.Get("name"), "/"), Spec: spec})
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, container.CreateResponse{ID: id, Warnings: append(warnings, more...)})
}

// createRequest reads the request; its parts are never nil.
func (c *call) createRequest() (*container.CreateRequest, error) {
	body, err := c.body()
	if err != nil {
		return nil, err
	}
	var req container.CreateRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, invalid("invalid JSON: %v", err)
	}
	// Fields of older APIs that the types no longer have.
	var old struct {
		MacAddress string
		HostConfig struct{ Capabilities []string }
	}
	if err := json.Unmarshal(body, &old); err != nil {
		return nil, invalid("invalid JSON: %v", err)
	}
	switch {
	case req.Config == nil:
		return nil, invalid("config cannot be empty in order to create a container")
	case old.MacAddress != "":
		return nil, errdefs.ErrNotImplemented.WithMessage("MacAddress is not supported yet: addresses are given out by the network")
	case len(old.HostConfig.Capabilities) > 0:
		return nil, invalid("HostConfig.Capabilities is not supported: use CapAdd and CapDrop")
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	return &req, nil
}

// imageFor finds the image of a create request. The docker CLI pulls it and
// tries again when it gets 404.
func (a *api) imageFor(c *call, name string) (image.Image, error) {
	img, err := a.Images.Resolve(c.ctx(), name)
	if err != nil {
		return img, err
	}
	if s := c.form.Get("platform"); s != "" && !c.before(41) {
		want, err := platforms.Parse(s)
		if err != nil {
			return img, invalid("platform: %v", err)
		}
		if !platforms.NewMatcher(want).Match(platforms.Normalize(img.Config.Platform)) {
			return img, notFound("image with reference %s was found but does not provide the specified platform (%s)", name, s)
		}
	}
	return img, nil
}

// mergeImage fills what the request leaves open from the image, as Docker
// does. Volumes that the image declares are shown but are no mounts: what is
// written there is on the container's own disk, and as lasting.
func mergeImage(cfg *container.Config, img image.Image) (warnings []string) {
	from := img.Config.Config
	if cfg.User == "" {
		cfg.User = from.User
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = from.WorkingDir
	}
	if cfg.StopSignal == "" {
		cfg.StopSignal = from.StopSignal
	}
	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 {
			cfg.Cmd = from.Cmd
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = from.Entrypoint
		}
	} else if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" {
		cfg.Entrypoint = nil // how clients say that the image's is not wanted
	}
	given := make(map[string]bool)
	for _, e := range cfg.Env {
		name, _, _ := strings.Cut(e, "=")
		given[name] = true
	}
	for _, e := range from.Env {
		if name, _, _ := strings.Cut(e, "="); !given[name] {
			cfg.Env = append(cfg.Env, e)
		}
	}
	labels := maps.Clone(from.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, cfg.Labels)
	cfg.Labels = labels
	for p := range from.ExposedPorts {
		port, err := network.ParsePort(p)
		if err != nil {
			continue // a note of the image that says nothing
		}
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = network.PortSet{}
		}
		cfg.ExposedPorts[port] = struct{}{}
	}
	cfg.Volumes = from.Volumes
	if hasHealthcheck(img.RawConfig) && cfg.Healthcheck == nil {
		warnings = append(warnings, "The image's HEALTHCHECK is not run: health checks are not supported yet.")
	}
	return append([]string{}, warnings...)
}

func hasHealthcheck(rawConfig []byte) bool {
	var raw struct {
		Config struct{ Healthcheck *container.HealthConfig } `json:"config"`
	}
	err := json.Unmarshal(rawConfig, &raw)
	hc := raw.Config.Healthcheck
	return err == nil && hc != nil && len(hc.Test) > 0 && hc.Test[0] != "NONE"
}

// setHostDefaults makes visible in inspect what a field left open means.
func setHostDefaults(h *container.HostConfig) {
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = bridgeName
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.IpcMode == "" {
		h.IpcMode = container.IPCModeShareable // with those of its pod
	}
	if h.CgroupnsMode == "" {
		h.CgroupnsMode = container.CgroupnsModePrivate
	}
	if h.ShmSize == 0 {
		h.ShmSize = 64 << 20
	}
	if h.Runtime == "" {
		h.Runtime = "hyper"
	}
	if h.PortBindings == nil {
		h.PortBindings = network.PortMap{}
	}
}

// spec maps a request, with the image's defaults in it, to what pod knows.
func (a *api) spec(req *container.CreateRequest) (pod.Spec, error) {
	cfg, h := req.Config, req.HostConfig
	s := pod.Spec{
		Image: cfg.Image, Args: append(slices.Clone(cfg.Entrypoint), cfg.Cmd...), Dir: cfg.WorkingDir, User: cfg.User, Groups: h.GroupAdd,
		Labels: cfg.Labels, Hostname: cfg.Hostname, Domainname: cfg.Domainname, DNSSearch: h.DNSSearch, DNSOptions: h.DNSOptions,
		TTY: cfg.Tty, Stdin: cfg.OpenStdin, StdinOnce: cfg.StdinOnce, ConsoleSize: h.ConsoleSize, Init: h.Init != nil && *h.Init,
		StopSignal: cfg.StopSignal, StopTimeout: cfg.StopTimeout, AutoRemove: h.AutoRemove,
		ReadOnly: h.ReadonlyRootfs, ShmBytes: h.ShmSize, Kernel: h.Annotations[annotationKernel],
		Privileged: h.Privileged, CapAdd: h.CapAdd, CapDrop: h.CapDrop, MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths,
		Sysctls: h.Sysctls, OOMScoreAdj: h.OomScoreAdj, Resources: resources(pod.Resources{}, h.Resources),
	}
	for _, e := range cfg.Env {
		if strings.Contains(e, "=") { // a name alone unsets, which the merge already did
			s.Env = append(s.Env, e)
		}
	}
	for _, ns := range h.DNS {
		s.DNS = append(s.DNS, ns.String())
	}
	for name := range h.Annotations {
		if strings.HasPrefix(name, annotationPrefix) && name != annotationKernel {
			return s, invalid("HostConfig.Annotations: %s is not an annotation of Hyper", name)
		}
	}
	for _, set := range []func(*pod.Spec, *container.CreateRequest) error{
		a.setNetwork, a.setExtraHosts, setNamespaces, setRestart, setSecurity, setLog, setTmpfs, setUlimits, setStorage,
	} {
		if err := set(&s, req); err != nil {
			return s, err
		}
	}
	return s, setIO(&s.Resources.IO, h.Resources)
}

func (a *api) setNetwork(s *pod.Spec, req *container.CreateRequest) error {
	mode := string(req.HostConfig.NetworkMode)
	switch {
	case req.Config.NetworkDisabled, mode == network.NetworkNone, mode == networkID(network.NetworkNone):
		s.Network = network.NetworkNone
	case mode == "", knownNetwork(mode), req.HostConfig.NetworkMode.IsContainer():
		s.Network = network.NetworkDefault
	default:
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("HostConfig.NetworkMode %q is not supported yet: %s", mode, whyNetworks))
	}
	return nil
}

func (a *api) setExtraHosts(s *pod.Spec, req *container.CreateRequest) error {
	for _, h := range req.HostConfig.ExtraHosts {
		name, ip, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return invalid("bad format for add-host: %q", h)
		}
		if ip == "host-gateway" {
			gateways := a.Info().Network.Gateways
			if s.Network == network.NetworkNone || len(gateways) == 0 {
				return invalid("HostConfig.ExtraHosts: the container has no gateway to the host")
			}
			ip = gateways[0].String()
		}
		if !addr(strings.Trim(ip, "[]")).IsValid() {
			return invalid("invalid IP address in add-host: %q", ip)
		}
		s.ExtraHosts = append(s.ExtraHosts, name+":"+strings.Trim(ip, "[]"))
	}
	return nil
}

func setSecurity(s *pod.Spec, req *container.CreateRequest) error {
	for _, opt := range req.HostConfig.SecurityOpt {
		key, value, found := strings.Cut(opt, "=")
		if !found {
			key, value, _ = strings.Cut(opt, ":") // the older spelling
		}
		switch {
		case key == "no-new-privileges":
			on, err := strconv.ParseBool(value)
			if err != nil && value != "" {
				return invalid("HostConfig.SecurityOpt: invalid value in %q", opt)
			}
			s.NoNewPrivs = on || value == ""
		case key == "seccomp" && value == "builtin":
			s.Seccomp = ""
		case key == "seccomp" && (value == "unconfined" || json.Valid([]byte(value))):
			s.Seccomp = value
		case key == "seccomp":
			return invalid("HostConfig.SecurityOpt: the seccomp profile is not JSON")
		case opt == "apparmor=unconfined", opt == "label=disable", opt == "apparmor:unconfined", opt == "label:disable":
			// The guest kernel has no such module to confine with.
		default:
			return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("HostConfig.SecurityOpt %q is not supported yet", key))
		}
	}
	return nil
}

func setLog(s *pod.Spec, req *container.CreateRequest) error {
	l := req.HostConfig.LogConfig
	if l.Type != "" && l.Type != "json-file" && l.Type != "none" {
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("HostConfig.LogConfig.Type %q is not supported yet: there are json-file and none", l.Type))
	}
	s.Log.Driver = l.Type
	for key, value := range l.Config {
		var err error
		switch {
		case key == "max-size" && l.Type != "none":
			s.Log.MaxBytes, err = units.RAMInBytes(value)
		case key == "max-file" && l.Type != "none":
			if s.Log.MaxFiles, err = strconv.Atoi(value); err == nil && s.Log.MaxFiles < 1 {
				err = fmt.Errorf("max-file cannot be less than 1")
			}
		case key == "mode" && value == "blocking":
		default:
			return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("HostConfig.LogConfig.Config: log option %q is not supported yet", key))
		}
		if err != nil {
			return invalid("HostConfig.LogConfig.Config %s: %v", key, err)
		}
	}
	if s.Log.MaxFiles > 1 && s.Log.MaxBytes == 0 {
		return invalid("HostConfig.LogConfig.Config: max-file needs max-size")
	}
	return nil
}

func setTmpfs(s *pod.Spec, req *container.CreateRequest) error {
	s.Tmpfs = maps.Clone(req.HostConfig.Tmpfs)
	for _, m := range req.HostConfig.Mounts {
		if m.Type != mount.TypeTmpfs {
			return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("HostConfig.Mounts of type %q are not supported yet: %s", m.Type, whyVolumes))
		}
		if m.Target == "" || m.Source != "" || m.BindOptions != nil || m.VolumeOptions != nil || m.ImageOptions != nil || m.ClusterOptions != nil {
			return invalid("HostConfig.Mounts: a tmpfs has a target, no source, and only options of a tmpfs")
		}
		if _, twice := s.Tmpfs[m.Target]; twice {
			return invalid("Duplicate mount point: %s", m.Target)
		}
		if s.Tmpfs == nil {
			s.Tmpfs = map[string]string{}
		}
		s.Tmpfs[m.Target] = tmpfsOptions(m)
	}
	return nil
}

func tmpfsOptions(m mount.Mount) string {
	var opts []string
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	if o := m.TmpfsOptions; o != nil {
		if o.SizeBytes > 0 {
			opts = append(opts, fmt.Sprintf("size=%d", o.SizeBytes))
		}
		if o.Mode != 0 {
			opts = append(opts, fmt.Sprintf("mode=%o", o.Mode))
		}
		for _, kv := range o.Options {
			opts = append(opts, strings.Join(kv, "="))
		}
	}
	return strings.Join(opts, ",")
}

func setUlimits(s *pod.Spec, req *container.CreateRequest) error {
	for _, u := range req.HostConfig.Ulimits {
		if u == nil {
			continue
		}
		if u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			return invalid("HostConfig.Ulimits: ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
		s.Ulimits = append(s.Ulimits, pod.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return nil
}

func setStorage(s *pod.Spec, req *container.CreateRequest) error {
	for key, value := range req.HostConfig.StorageOpt {
		if key != "size" {
			return invalid("HostConfig.StorageOpt: unknown option %q, there is only size", key)
		}
		n, err := units.RAMInBytes(value)
		if err != nil {
			return invalid("HostConfig.StorageOpt size: %v", err)
		}
		s.DiskBytes = n
	}
	return nil
}
