package dockerapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/hyper-run/hyper/internal/pod"
)

// keyPod names the pod that a container shall be in. As an annotation it wants
// a pod that is there; as a label, which is all that a Compose file can say, it
// has the pod made with the container when it isn't. The labels of an image
// are no orders.
const keyPod = "hyper.pod"

// A place is where a container shall be: in a pod of its own, or with others.
type place struct {
	pod      string // ID of a pod that is there; "": none
	name     string // of the pod, for errors
	network  string // of the pod
	make     string // name of a pod to make with the container; "": none
	net, pid string // IDs of the containers whose network and PID namespace it joins
}

// A join is one way in which a request names a pod.
type join struct {
	what string // "network mode container:web"
	place
}

// place finds out where the container of a request shall be. Modes that name a
// container name it by its ID afterwards.
func (a *api) place(req *container.CreateRequest) (place, error) {
	joins, err := a.joins(req)
	if err != nil {
		return place{}, err
	}
	var p place
	for i, j := range joins {
		if first := joins[0]; i > 0 && (j.pod != first.pod || j.make != first.make) {
			return place{}, invalid("conflicting options: %s and %s are of different pods", first.what, j.what)
		}
		p.pod, p.name, p.network, p.make = j.pod, j.name, j.network, j.make
		p.net, p.pid = cmp.Or(p.net, j.net), cmp.Or(p.pid, j.pid)
	}
	if len(joins) > 0 {
		err = p.check(req)
	}
	return p, err
}

// joins are all ways in which a request names a pod.
func (a *api) joins(req *container.CreateRequest) (joins []join, err error) {
	h := req.HostConfig
	for _, m := range []struct {
		what string
		mode *string
	}{{"network mode", (*string)(&h.NetworkMode)}, {"IPC mode", (*string)(&h.IpcMode)}, {"PID mode", (*string)(&h.PidMode)}} {
		ref, ok := strings.CutPrefix(*m.mode, "container:")
		if !ok {
			continue
		}
		// Not 404, which tells Docker's command to pull the image.
		ct, err := a.Containers.Get(ref)
		switch {
		case ref == "":
			return nil, invalid("invalid %s: invalid container format container:<name|id>", m.what)
		case errdefs.IsNotFound(err):
			return nil, invalid("%v", err)
		case err != nil:
			return nil, err
		}
		j := join{m.what + " " + *m.mode, place{pod: ct.PodID, name: "of " + ct.Name, network: ct.Spec.Network}}
		switch m.what {
		case "network mode":
			j.net = ct.ID
		case "IPC mode":
			if ct.Spec.IPCMode != "" {
				return nil, invalid("can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", ct.ID)
			}
		case "PID mode":
			j.pid = ct.ID
		}
		*m.mode = "container:" + ct.ID
		joins = append(joins, j)
	}
	if name, ok := h.Annotations[keyPod]; ok {
		p, err := a.Containers.GetPod(name)
		if err != nil {
			return nil, err
		}
		joins = append(joins, join{"pod " + name, inPod(p)})
	}
	if name, ok := req.Config.Labels[keyPod]; ok {
		p, err := a.Containers.GetPod(name)
		switch {
		case err == nil && p.Name == name:
			joins = append(joins, join{"pod " + name, inPod(p)})
		case err == nil, errdefs.IsNotFound(err):
			joins = append(joins, join{"pod " + name, place{name: name, make: name}})
		default:
			return nil, err
		}
	}
	return joins, nil
}

// inPod is the place in a pod that is there.
func inPod(p pod.PodInfo) place {
	pl := place{pod: p.ID, name: cmp.Or(p.Name, p.ID[:min(12, len(p.ID))]), network: p.Spec.Network}
	if p.Name == "" && len(p.Containers) > 0 { // it is as its container
		pl.network = p.Containers[0].Spec.Network
	}
	return pl
}

// check refuses what holds for a pod as a whole and its containers can't choose.
func (p *place) check(req *container.CreateRequest) error {
	cfg, h := req.Config, req.HostConfig
	for _, c := range []struct {
		what  string
		given bool
	}{
		{"hostname", cfg.Hostname != "" || cfg.Domainname != ""},
		{"dns", len(h.DNS)+len(h.DNSSearch)+len(h.DNSOptions) > 0},
		{"custom host-to-IP mapping", len(h.ExtraHosts) > 0},
		{"size of /dev/shm", h.ShmSize != 0 && !h.IpcMode.IsPrivate()},
		{"kernel", h.Annotations[annotationKernel] != ""},
	} {
		if c.given {
			return invalid("conflicting options: %s and the pod %s, for which it is one", c.what, p.name)
		}
	}
	if h.NetworkMode.IsContainer() || h.NetworkMode.IsDefault() || h.NetworkMode == "" || p.network == "" {
		return nil
	}
	want := network.NetworkDefault
	if h.NetworkMode.IsNone() {
		want = network.NetworkNone
	}
	if want != p.network {
		return invalid("conflicting options: network mode %s and the pod %s, whose network is %s", h.NetworkMode, p.name, networkName(pod.Spec{Network: p.network}))
	}
	return nil
}

// checkJoinedNetwork refuses, in Docker's words, what a container can't have
// that joins the network of another.
func checkJoinedNetwork(req *container.CreateRequest) error {
	cfg, h := req.Config, req.HostConfig
	if !h.NetworkMode.IsContainer() {
		return nil
	}
	for _, c := range []struct {
		given bool
		words string
	}{
		{cfg.Hostname != "", "hostname and the network mode"},
		{len(h.Links) > 0, "container type network can't be used with links. This would result in undefined behavior"},
		{len(h.DNS) > 0, "dns and the network mode"},
		{len(h.ExtraHosts) > 0, "custom host-to-IP mapping and the network mode"},
		{len(h.PortBindings) > 0 || h.PublishAllPorts, "port publishing and the container type network mode"},
		{len(cfg.ExposedPorts) > 0, "port exposing and the container type network mode"},
	} {
		if c.given {
			return invalid("conflicting options: %s", c.words)
		}
	}
	return nil
}

// apply puts into a spec what follows from the place.
func (p *place) apply(s *pod.Spec) {
	s.JoinNet = p.net
	if p.pid != "" {
		s.PIDMode = p.pid
	}
	if p.network != "" {
		s.Network = p.network
	}
}

// setNamespaces maps the modes of IPC and PID namespaces, but for the
// containers that they name.
func setNamespaces(s *pod.Spec, req *container.CreateRequest) error {
	h := req.HostConfig
	switch {
	case h.IpcMode.IsPrivate():
		s.IPCMode = "private"
	case !h.IpcMode.IsEmpty() && !h.IpcMode.IsShareable() && !h.IpcMode.IsContainer():
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("HostConfig.IpcMode %q is not supported yet: there are private, shareable and container:NAME", h.IpcMode))
	}
	switch {
	case h.PidMode == "pod", h.PidMode == "vm":
		s.PIDMode = string(h.PidMode)
	case h.PidMode != "" && !h.PidMode.IsContainer():
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("HostConfig.PidMode %q is not supported yet: there are pod, vm and container:NAME", h.PidMode))
	}
	return nil
}

// createIn makes a container in its place.
func (a *api) createIn(ctx context.Context, p place, o pod.CreateOptions) (id string, warnings []string, err error) {
	o.Pod = p.pod
	if p.make == "" {
		return a.Containers.Create(ctx, o)
	}
	made, err := a.Containers.CreatePod(ctx, pod.PodOptions{
		Name: p.make, Spec: pod.PodSpec{Network: o.Spec.Network, AutoRemove: true}, Containers: []pod.CreateOptions{o},
	})
	if errdefs.IsConflict(err) || errdefs.IsAlreadyExists(err) {
		// Perhaps another container had it made meanwhile.
		if other, getErr := a.Containers.GetPod(p.make); getErr == nil && other.Name == p.make {
			o.Pod = other.ID
			return a.Containers.Create(ctx, o)
		}
	}
	if err != nil {
		return "", nil, err
	}
	info, err := a.Containers.GetPod(made)
	if err != nil || len(info.Containers) == 0 {
		return "", nil, errors.Join(fmt.Errorf("pod %s went as it was made", p.make), err)
	}
	return info.Containers[0].ID, nil, nil
}
