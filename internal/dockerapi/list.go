package dockerapi

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/hyper-run/hyper/internal/image"
	"github.com/hyper-run/hyper/internal/pod"
)

var listFilters = []string{
	"ancestor", "annotation", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label",
	"name", "network", "publish", "since", "status", "volume",
}

func (a *api) list(c *call) error {
	f, err := c.filters(listFilters...)
	if err != nil {
		return err
	}
	limit, err := c.integer("limit")
	if err != nil {
		return err
	}
	all := a.Containers.List(pod.Filter{All: true})
	keep, err := a.containerFilter(c, f)
	if err != nil {
		return err
	}
	limited := limit != nil && *limit > 0
	everything := c.flag("all", false) || f.has("status") || limited
	if all, err = a.cutList(all, f); err != nil {
		return err
	}
	var chosen []pod.Container
	for _, ct := range all {
		if !everything && !isRunning(ct) || !keep(ct) {
			continue
		}
		if chosen = append(chosen, ct); limited && len(chosen) == *limit {
			break
		}
	}
	out, err := a.summaries(c, chosen, c.flag("size", false))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, out)
}

func isRunning(ct pod.Container) bool {
	return ct.Status == pod.StatusRunning || ct.Status == pod.StatusPaused || ct.Status == pod.StatusRestarting
}

// cutList applies "before" and "since" to containers, newest first.
func (a *api) cutList(all []pod.Container, f filters) ([]pod.Container, error) {
	for _, ref := range f["before"] {
		ct, err := a.Containers.Get(ref)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(x pod.Container) bool { return x.ID == ct.ID || !x.Created.Before(ct.Created) })
	}
	for _, ref := range f["since"] {
		ct, err := a.Containers.Get(ref)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(x pod.Container) bool { return x.ID == ct.ID || !x.Created.After(ct.Created) })
	}
	return all, nil
}

// containerFilter makes the filters into one predicate.
func (a *api) containerFilter(c *call, f filters) (func(pod.Container) bool, error) {
	for _, s := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
			return nil, invalid("invalid filter 'status=%s': %v", s, err)
		}
	}
	for _, s := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(s)); err != nil {
			return nil, invalid("invalid filter 'health=%s': %v", s, err)
		}
	}
	for _, s := range f["exited"] {
		if _, err := strconv.Atoi(s); err != nil {
			return nil, invalid("invalid filter 'exited=%s'", s)
		}
	}
	isTask, err := f.boolean("is-task", false)
	if err != nil {
		return nil, err
	}
	exposed, err := ports(f["expose"])
	if err != nil {
		return nil, err
	}
	if _, err := ports(f["publish"]); err != nil {
		return nil, err
	}
	ancestors := make(map[string]bool)
	for _, ref := range f["ancestor"] {
		if img, err := a.Images.Resolve(c.ctx(), ref); err == nil {
			ancestors[img.ID.String()] = true
		}
	}
	return func(ct pod.Container) bool {
		exitedOK := !f.has("exited") || ct.Status == pod.StatusExited && slices.Contains(f["exited"], strconv.Itoa(ct.ExitCode))
		named := !f.has("name") || f.pattern("name", ct.Name) || f.pattern("name", "/"+ct.Name)
		return named && f.prefix("id", ct.ID) && f.exact("status", string(ct.Status)) && exitedOK &&
			f.labels("label", ct.Spec.Labels) && (!f.has("annotation") || f.labels("annotation", edgeOf(ct).Host.Annotations)) &&
			(!f.has("ancestor") || ancestors[ct.Spec.ImageID]) && inNetwork(f, ct) &&
			f.exact("health", string(container.NoHealthcheck)) && f.exact("isolation", "") &&
			!isTask && !f.has("publish") && !f.has("volume") &&
			(!f.has("expose") || slices.ContainsFunc(portSummaries(ct, edgeOf(ct).Config), func(p container.PortSummary) bool {
				return exposed[fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)]
			}))
	}, nil
}

func inNetwork(f filters, ct pod.Container) bool {
	name := networkName(ct.Spec)
	return f.exact("network", name) || f.prefix("network", networkID(name))
}

// ports expands "80", "80/udp" and "8000-8010" to the set of their ports.
func ports(ranges []string) (map[string]bool, error) {
	set := make(map[string]bool)
	for _, s := range ranges {
		r, err := network.ParsePortRange(s)
		if err != nil {
			return nil, invalid("invalid filter: port %q: %v", s, err)
		}
		for p := range r.All() {
			set[p.String()] = true
		}
	}
	return set, nil
}

// summaries are containers as list shows them.
func (a *api) summaries(c *call, containers []pod.Container, size bool) ([]container.Summary, error) {
	out := []container.Summary{}
	if len(containers) == 0 {
		return out, nil
	}
	images, err := a.Images.List(c.ctx())
	if err != nil {
		return nil, err
	}
	byID, byName := indexImages(images)
	for _, ct := range containers {
		edge := edgeOf(ct)
		s := container.Summary{
			ID: ct.ID, Names: []string{"/" + ct.Name}, Image: ct.Spec.Image, ImageID: ct.Spec.ImageID, Command: command(ct.Spec.Args),
			Created: ct.Created.Unix(), Ports: portSummaries(ct, edge.Config), Labels: ct.Spec.Labels, State: container.ContainerState(ct.Status),
			Status: statusText(ct, time.Now()), NetworkSettings: &container.NetworkSettingsSummary{Networks: endpoints(ct)},
			Mounts: mounts(edge.Host),
		}
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		if id, ok := byName[familiar(ct.Spec.Image)]; (!ok || id != ct.Spec.ImageID) && !strings.HasPrefix(ct.Spec.ImageID, "sha256:"+ct.Spec.Image) {
			s.Image = ct.Spec.ImageID // the name has moved to another image
		}
		s.HostConfig.NetworkMode = string(edge.Host.NetworkMode)
		if !c.before(46) {
			s.HostConfig.Annotations = edge.Host.Annotations
		}
		if !c.before(52) {
			s.Health = &container.HealthSummary{Status: container.NoHealthcheck}
		}
		if size {
			s.SizeRw = diskBytes(ct.Disk)
			s.SizeRootFs = s.SizeRw + byID[ct.Spec.ImageID].Size
		}
		out = append(out, s)
	}
	return out, nil
}

func indexImages(images []image.Image) (byID map[string]image.Image, byName map[string]string) {
	byID, byName = make(map[string]image.Image), make(map[string]string)
	for _, img := range images {
		byID[img.ID.String()] = img
		for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
			byName[name] = img.ID.String()
		}
	}
	return byID, byName
}

// command is what a container runs, on one line.
func command(args []string) string {
	quoted := slices.Clone(args)
	for i, arg := range quoted {
		if i > 0 && strings.Contains(arg, " ") {
			quoted[i] = "'" + arg + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// statusText is the STATUS column of "docker ps".
func statusText(ct pod.Container, now time.Time) string {
	switch ct.Status {
	case pod.StatusRunning:
		return "Up " + units.HumanDuration(now.Sub(ct.StartedAt))
	case pod.StatusPaused:
		return "Up " + units.HumanDuration(now.Sub(ct.StartedAt)) + " (Paused)"
	case pod.StatusRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", ct.ExitCode, units.HumanDuration(now.Sub(ct.FinishedAt)))
	case pod.StatusRemoving:
		return "Removal In Progress"
	case pod.StatusDead:
		return "Dead"
	case pod.StatusCreated:
		return "Created"
	}
	if ct.FinishedAt.IsZero() {
		return "Created" // a start that failed
	}
	return fmt.Sprintf("Exited (%d) %s ago", ct.ExitCode, units.HumanDuration(now.Sub(ct.FinishedAt)))
}

// portSummaries are the ports a running container exposes.
func portSummaries(ct pod.Container, cfg *container.Config) []container.PortSummary {
	out := []container.PortSummary{}
	if !isRunning(ct) {
		return out
	}
	for p := range cfg.ExposedPorts {
		out = append(out, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
	}
	slices.SortFunc(out, func(x, y container.PortSummary) int {
		if x.PrivatePort != y.PrivatePort {
			return int(x.PrivatePort) - int(y.PrivatePort)
		}
		return strings.Compare(x.Type, y.Type)
	})
	return out
}

func (a *api) pruneContainers(c *call) error {
	f, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return err
	}
	report := container.PruneReport{ContainersDeleted: []string{}}
	for _, ct := range a.Containers.List(pod.Filter{All: true}) {
		if ct.Status != pod.StatusCreated && ct.Status != pod.StatusExited && ct.Status != pod.StatusDead ||
			!until.IsZero() && ct.Created.After(until) ||
			!f.labels("label", ct.Spec.Labels) || !f.notLabels("label!", ct.Spec.Labels) {
			continue
		}
		size := diskBytes(ct.Disk)
		if err := a.Containers.Remove(c.ctx(), ct.ID, false); err != nil {
			if c.ctx().Err() != nil {
				return err
			}
			a.Log.Warn("container not pruned", "container", ct.ID, "error", err)
			continue
		}
		report.ContainersDeleted = append(report.ContainersDeleted, ct.ID)
		report.SpaceReclaimed += uint64(size)
	}
	return c.json(http.StatusOK, report)
}
