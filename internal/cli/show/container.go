// Package show is how containers, images, figures, events and the daemon
// itself look to the user: the columns and fields of Docker's lists.
package show

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hyper-run/hyper/internal/cli/format"
)

// Containers is the list of ps.
var Containers = format.Table{
	Columns: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}",
	Headers: format.Row{
		"ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT",
		"RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Labels": "LABELS",
		"Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM", "HealthStatus": "HEALTH STATUS",
	},
}

// Container is a container as ps and system df show it.
func Container(c container.Summary, trunc bool) format.Row {
	created := time.Unix(c.Created, 0)
	r := format.Row{
		"ID": c.ID, "Names": containerNames(c.Names, trunc), "Image": c.Image, "Command": c.Command,
		"CreatedAt": created.String(), "RunningFor": format.Ago(created), "Ports": ports(c.Ports),
		"State": string(c.State), "Status": c.Status, "Size": format.Size(c.SizeRw), "Labels": format.Labels(c.Labels),
		"Mounts": mounts(c.Mounts, trunc), "LocalVolumes": localVolumes(c.Mounts), "Networks": "", "Platform": nil, "HealthStatus": "",
	}
	if trunc {
		r["ID"] = format.ShortID(c.ID)
		r["Command"] = format.Ellipsis(c.Command, 20)
		if format.ShortID(c.ImageID) == format.ShortID(c.Image) {
			r["Image"] = format.ShortID(c.Image)
		} else if name, _, ok := strings.Cut(c.Image, "@"); ok {
			r["Image"] = name
		}
	}
	r["Command"] = strconv.Quote(r["Command"].(string))
	if c.Image == "" {
		r["Image"] = "<no image>"
	}
	if c.SizeRootFs > 0 {
		r["Size"] = fmt.Sprintf("%s (virtual %s)", r["Size"], format.Size(c.SizeRootFs))
	}
	if c.NetworkSettings != nil {
		r["Networks"] = strings.Join(slices.Sorted(maps.Keys(c.NetworkSettings.Networks)), ",")
	}
	if d := c.ImageManifestDescriptor; d != nil && d.Platform != nil {
		r["Platform"] = platform(*d.Platform)
	}
	if c.Health != nil {
		r["HealthStatus"] = string(c.Health.Status)
	}
	return r
}

// containerNames leaves out the names that links give when it truncates.
func containerNames(names []string, trunc bool) string {
	var out []string
	for _, n := range names {
		n = strings.TrimPrefix(n, "/")
		if !trunc || !strings.Contains(n, "/") {
			out = append(out, n)
		}
		if trunc && len(out) == 1 {
			break
		}
	}
	return strings.Join(out, ",")
}

func mounts(ms []container.MountPoint, trunc bool) string {
	var out []string
	for _, m := range ms {
		n := cmp.Or(m.Name, m.Source)
		if trunc {
			n = format.Ellipsis(n, 15)
		}
		out = append(out, n)
	}
	return strings.Join(out, ",")
}

func localVolumes(ms []container.MountPoint) string {
	n := 0
	for _, m := range ms {
		if m.Driver == "local" {
			n++
		}
	}
	return strconv.Itoa(n)
}

// ports is what a container publishes and exposes; neighbours of the same kind
// are one range: 0.0.0.0:80-81->80-81/tcp.
func ports(list []container.PortSummary) string {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), a.IP.Compare(b.IP), cmp.Compare(a.PublicPort, b.PublicPort), cmp.Compare(a.Type, b.Type))
	})
	type portRange struct {
		ip, proto   string
		first, last uint16
	}
	var ranges []*portRange
	var mapped []string
next:
	for _, p := range list {
		r := &portRange{proto: p.Type, first: p.PrivatePort, last: p.PrivatePort}
		if p.IP.IsValid() {
			r.ip = p.IP.String()
			if p.PublicPort != p.PrivatePort {
				mapped = append(mapped, fmt.Sprintf("%s->%d/%s", net.JoinHostPort(r.ip, strconv.Itoa(int(p.PublicPort))), p.PrivatePort, p.Type))
				continue
			}
		}
		for _, q := range ranges {
			if q.ip == r.ip && q.proto == r.proto && q.last+1 == r.first {
				q.last = r.first
				continue next
			}
		}
		ranges = append(ranges, r)
	}
	var out []string
	for _, r := range ranges {
		s := strconv.Itoa(int(r.first))
		if r.last != r.first {
			s += "-" + strconv.Itoa(int(r.last))
		}
		if r.ip != "" {
			s = net.JoinHostPort(r.ip, s) + "->" + s
		}
		out = append(out, s+"/"+r.proto)
	}
	return strings.Join(append(out, mapped...), ", ")
}

func platform(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
