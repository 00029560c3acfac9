package pod

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/network"
)

// files are what Docker puts into every container beside its image; name is the pod's.
func files(sp Spec, name string, a *network.Attachment) []*wire.File {
	full := name
	if sp.Domainname != "" {
		full = name + "." + sp.Domainname + " " + name
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	servers := sp.DNS
	own := "127.0.0.1"
	if a != nil {
		for _, p := range a.Addrs {
			if p.Addr().Is4() {
				own = p.Addr().String()
			}
		}
		if len(servers) == 0 {
			for _, d := range a.DNS {
				servers = append(servers, d.String())
			}
		}
	}
	for _, h := range sp.ExtraHosts {
		host, addr, _ := strings.Cut(h, ":")
		if addr == "host-gateway" {
			addr = gateway(a)
		}
		fmt.Fprintf(&hosts, "%s\t%s\n", addr, host)
	}
	fmt.Fprintf(&hosts, "%s\t%s\n", own, full)
	var resolv strings.Builder
	for _, d := range servers {
		fmt.Fprintf(&resolv, "nameserver %s\n", d)
	}
	if len(sp.DNSSearch) > 0 {
		fmt.Fprintf(&resolv, "search %s\n", strings.Join(sp.DNSSearch, " "))
	}
	if len(sp.DNSOptions) > 0 {
		fmt.Fprintf(&resolv, "options %s\n", strings.Join(sp.DNSOptions, " "))
	}
	return []*wire.File{
		{Path: "/etc/hostname", Content: []byte(name + "\n"), Mode: 0o644},
		{Path: "/etc/hosts", Content: []byte(hosts.String()), Mode: 0o644},
		{Path: "/etc/resolv.conf", Content: []byte(resolv.String()), Mode: 0o644},
	}
}

// CheckExtraHost says whether h is name:address, as --add-host takes it.
func CheckExtraHost(h string) error {
	name, addr, ok := strings.Cut(h, ":")
	if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); !ok || name == "" || (err != nil && addr != "host-gateway") {
		return textError{fmt.Sprintf("bad format for add-host: %q", h), errdefs.ErrInvalidArgument}
	}
	return nil
}

func gateway(a *network.Attachment) string {
	if a == nil || len(a.Gateway) == 0 {
		return "127.0.0.1"
	}
	return a.Gateway[0].String()
}
