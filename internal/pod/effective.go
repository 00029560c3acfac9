package pod

import (
	"maps"
	"slices"
	"strings"

	"github.com/hyper-run/hyper/internal/network"
)

// effective is the container's spec with what its pod, or the container whose
// network it joined, says for all.
func (c *container) effective() Spec {
	sp := c.spec()
	if other := c.joined(); other != nil {
		osp := other.spec()
		sp.Domainname, sp.ExtraHosts, sp.DNS, sp.DNSSearch, sp.DNSOptions = osp.Domainname, osp.ExtraHosts, osp.DNS, osp.DNSSearch, osp.DNSOptions
	}
	p := c.pod
	if !p.explicit() {
		return sp
	}
	ps := p.record().Spec
	sp.Domainname = ps.Domainname
	sp.ExtraHosts = append(slices.Clone(ps.ExtraHosts), sp.ExtraHosts...)
	if len(sp.DNS)+len(sp.DNSSearch)+len(sp.DNSOptions) == 0 {
		sp.DNS, sp.DNSSearch, sp.DNSOptions = ps.DNS, ps.DNSSearch, ps.DNSOptions
	}
	if len(ps.Sysctls) > 0 {
		all := maps.Clone(ps.Sysctls)
		maps.Copy(all, sp.Sysctls)
		sp.Sysctls = all
	}
	if sp.PIDMode == "" && ps.SharePID {
		sp.PIDMode = "pod"
	}
	return sp
}

// startSpec is effective, with what is known only when the pod runs.
func (c *container) startSpec(a *network.Attachment) (Spec, error) {
	sp := c.effective()
	fields := map[string]string{}
	p := c.pod
	for _, f := range sp.EnvFields {
		fields[f.Name] = p.field(f.Field, a)
	}
	if sp.Expand {
		known := func(name string) (string, bool) {
			v, ok := fields[name]
			return v, ok
		}
		for _, list := range []*[]string{&sp.Args, &sp.Env} {
			*list = slices.Clone(*list)
			for i, text := range *list {
				var err error
				if (*list)[i], err = Expand(text, known); err != nil {
					return sp, err
				}
			}
		}
	}
	for _, f := range sp.EnvFields {
		sp.Env = append(slices.Clone(sp.Env), f.Name+"="+fields[f.Name])
	}
	return sp, nil
}

// field is what a field of the pod is, see EnvField.
func (p *pod) field(field string, a *network.Attachment) string {
	var ips []string
	if a != nil {
		for _, p := range a.Addrs {
			ips = append(ips, p.Addr().String())
		}
	}
	switch {
	case field == "metadata.uid":
		return p.id
	case field == "status.podIPs":
		return strings.Join(ips, ",")
	case field == "status.podIP" && len(ips) > 0:
		return ips[0]
	case field == "status.hostIP" && a != nil && len(a.Gateway) > 0:
		return a.Gateway[0].String()
	}
	return ""
}

// joined is the container whose network this one joined, nil when it has its own.
func (c *container) joined() *container {
	id := c.spec().JoinNet
	if id == "" {
		return nil
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	return c.set.containers[id]
}

// hostname is that of the pod. One that was made for a container has that one's.
func (c *container) hostname() string {
	if p := c.pod; p.explicit() {
		return p.hostname()
	}
	if all := c.set.members(c.podID); len(all) > 0 && all[0] != c {
		return all[0].hostname()
	}
	if name := c.spec().Hostname; name != "" {
		return name
	}
	return short(c.id)
}
