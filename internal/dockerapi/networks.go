package dockerapi

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"

	"github.com/hyper-run/hyper/internal/pod"
)

// bridgeName is what Docker's clients call the default network.
const bridgeName = network.NetworkBridge

// networkID is the made-up but lasting ID of a network.
func networkID(name string) string { return hashID("network " + name) }

func endpointID(containerID, network string) string {
	return hashID("endpoint " + network + " " + containerID)
}

func hashID(s string) string {
	sum := sha256.Sum256([]byte("hyper " + s))
	return hex.EncodeToString(sum[:])
}

// networkName is how Docker's clients call the network of a spec.
func networkName(s pod.Spec) string {
	if s.JoinNet != "" {
		return "container:" + s.JoinNet
	}
	if s.Network == network.NetworkNone {
		return network.NetworkNone
	}
	return bridgeName
}

func (a *api) networks() []network.Network {
	in := a.Info()
	bridge := network.Network{
		Name: bridgeName, ID: networkID(bridgeName), Created: in.Started, Scope: "local", Driver: "bridge",
		IPAM:    network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Options: map[string]string{"com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.name": in.Network.Bridge},
		Labels:  map[string]string{},
	}
	if in.Network.MTU > 0 {
		bridge.Options["com.docker.network.driver.mtu"] = strconv.Itoa(in.Network.MTU)
	}
	for i, p := range in.Network.Subnets {
		ipam := network.IPAMConfig{Subnet: p}
		if i < len(in.Network.Gateways) {
			ipam.Gateway = in.Network.Gateways[i]
		}
		bridge.IPAM.Config = append(bridge.IPAM.Config, ipam)
		bridge.EnableIPv4 = bridge.EnableIPv4 || p.Addr().Is4()
		bridge.EnableIPv6 = bridge.EnableIPv6 || p.Addr().Is6()
	}
	none := network.Network{
		Name: network.NetworkNone, ID: networkID(network.NetworkNone), Created: in.Started, Scope: "local", Driver: "null",
		EnableIPv4: true, IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Options: map[string]string{}, Labels: map[string]string{},
	}
	return []network.Network{bridge, none}
}

func (a *api) listNetworks(c *call) error {
	f, err := c.filters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return err
	}
	out := []network.Summary{}
	for _, n := range a.networks() {
		// Both are built in: never dangling, never of type custom.
		if !dangling && f.exact("driver", n.Driver) && f.prefix("id", n.ID) && f.pattern("name", n.Name) &&
			f.exact("scope", n.Scope) && f.exact("type", "builtin") && f.labels("label", n.Labels) {
			out = append(out, network.Summary{Network: n})
		}
	}
	return c.json(http.StatusOK, out)
}

func (a *api) inspectNetwork(c *call) error {
	for _, n := range a.networks() {
		if n.Name != c.name && (len(c.name) < 3 || !strings.HasPrefix(n.ID, c.name)) && (n.Name != bridgeName || c.name != network.NetworkDefault) {
			continue
		}
		out := network.Inspect{Network: n, Containers: map[string]network.EndpointResource{}}
		for _, ct := range a.Containers.List(pod.Filter{}) {
			if networkName(ct.Spec) != n.Name {
				continue
			}
			res := network.EndpointResource{Name: ct.Name, EndpointID: endpointID(ct.ID, n.Name)}
			if ct.Net != nil {
				res.MacAddress = hardwareAddr(ct.Net.MAC)
				res.IPv4Address = prefix(ct.Net.Address, ct.Net.PrefixLen)
				res.IPv6Address = prefix(ct.Net.IPv6, ct.Net.IPv6PrefixLen)
			}
			out.Containers[ct.ID] = res
		}
		return c.json(http.StatusOK, out)
	}
	return notFound("network %s not found", c.name)
}

// endpoints are a container's networks as inspect and list show them. One that
// joined another's network has none of its own.
func endpoints(ct pod.Container) map[string]*network.EndpointSettings {
	if ct.Spec.JoinNet != "" {
		return map[string]*network.EndpointSettings{}
	}
	name := networkName(ct.Spec)
	ep := &network.EndpointSettings{}
	if ct.Status == pod.StatusRunning || ct.Status == pod.StatusPaused {
		ep.NetworkID, ep.EndpointID = networkID(name), endpointID(ct.ID, name)
	}
	if n := ct.Net; n != nil {
		ep.MacAddress = hardwareAddr(n.MAC)
		ep.Gateway, ep.IPAddress, ep.IPPrefixLen = addr(n.Gateway), addr(n.Address), n.PrefixLen
		ep.IPv6Gateway, ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen = addr(n.IPv6Gateway), addr(n.IPv6), n.IPv6PrefixLen
	}
	return map[string]*network.EndpointSettings{name: ep}
}

// addr is zero, "" in JSON, for what is no address.
func addr(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

func prefix(s string, bits int) netip.Prefix {
	if a := addr(s); a.IsValid() {
		return netip.PrefixFrom(a, bits)
	}
	return netip.Prefix{}
}

func hardwareAddr(s string) network.HardwareAddr {
	mac, _ := net.ParseMAC(s)
	return network.HardwareAddr(mac)
}

func (a *api) pruneNetworks(c *call) error {
	return c.json(http.StatusOK, network.PruneReport{NetworksDeleted: []string{}})
}

func (a *api) listVolumes(c *call) error {
	if _, err := c.filters("dangling", "driver", "label", "name"); err != nil {
		return err
	}
	return c.json(http.StatusOK, volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}})
}

func (a *api) inspectVolume(c *call) error { return notFound("get %s: no such volume", c.name) }

func (a *api) pruneVolumes(c *call) error {
	return c.json(http.StatusOK, volume.PruneReport{VolumesDeleted: []string{}})
}
