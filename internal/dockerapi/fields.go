package dockerapi

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// A fate says what becomes of a field of a create or update request.
type fate int

const (
	honoured fate = iota + 1 // create.go maps it, and refuses values it can't map
	noEffect                 // means nothing in a VM, or is the client's own note
	later                    // refused with 501: not supported yet
	never                    // refused with 400: has no meaning here
)

// A rule is the fate of one field. A refused field may still have its zero
// value, be empty, or print as one of harmless.
type rule struct {
	fate     fate
	why      string // after "is not supported (yet): "
	harmless []string
}

const (
	whyVolumes  = "volumes and host directories come in a later release"
	whyNetworks = "only the networks bridge and none are there"
	whyDevices  = "a container is in a virtual machine, which has no devices of the host"
	whyWindows  = "it is for Windows containers"
	whyShared   = "there is a virtual machine between a container and the host"
	whyBlkio    = "a container's disk is its own, weighed against nothing"
)

// configRules are for container.Config.
var configRules = map[string]rule{
	"Hostname": {fate: honoured}, "Domainname": {fate: honoured}, "User": {fate: honoured}, "Tty": {fate: honoured},
	"OpenStdin": {fate: honoured}, "StdinOnce": {fate: honoured}, "Env": {fate: honoured}, "Cmd": {fate: honoured},
	"Entrypoint": {fate: honoured}, "Image": {fate: honoured}, "WorkingDir": {fate: honoured}, "NetworkDisabled": {fate: honoured},
	"Labels": {fate: honoured}, "StopSignal": {fate: honoured}, "StopTimeout": {fate: honoured},
	"ExposedPorts": {fate: honoured}, // shown, as Docker does; publishing them is what is refused

	"AttachStdin": {fate: noEffect}, "AttachStdout": {fate: noEffect}, "AttachStderr": {fate: noEffect}, // what the client will attach
	"ArgsEscaped": {fate: noEffect}, // Windows' spelling of Cmd
	"OnBuild":     {fate: noEffect}, // for builders
	"Shell":       {fate: noEffect}, // for builders and health checks

	"Healthcheck": {fate: later, why: "health checks come in a later release", harmless: []string{"{[NONE] 0s 0s 0s 0s 0}"}},
	"Volumes":     {fate: later, why: whyVolumes},
}

// hostRules are for container.HostConfig, without Resources.
var hostRules = map[string]rule{
	"LogConfig": {fate: honoured}, "NetworkMode": {fate: honoured}, "AutoRemove": {fate: honoured}, "ConsoleSize": {fate: honoured},
	"Annotations": {fate: honoured}, "CapAdd": {fate: honoured}, "CapDrop": {fate: honoured}, "DNS": {fate: honoured},
	"DNSOptions": {fate: honoured}, "DNSSearch": {fate: honoured}, "ExtraHosts": {fate: honoured}, "GroupAdd": {fate: honoured},
	"OomScoreAdj": {fate: honoured}, "Privileged": {fate: honoured}, "ReadonlyRootfs": {fate: honoured}, "SecurityOpt": {fate: honoured},
	"StorageOpt": {fate: honoured}, "Tmpfs": {fate: honoured}, "ShmSize": {fate: honoured}, "Sysctls": {fate: honoured},
	"Mounts": {fate: honoured}, "MaskedPaths": {fate: honoured}, "ReadonlyPaths": {fate: honoured}, "Init": {fate: honoured},
	"RestartPolicy": {fate: honoured}, "IpcMode": {fate: honoured}, "PidMode": {fate: honoured},

	"ContainerIDFile": {fate: noEffect}, // the client writes it

	"Binds":           {fate: later, why: whyVolumes},
	"VolumesFrom":     {fate: later, why: whyVolumes},
	"VolumeDriver":    {fate: later, why: whyVolumes, harmless: []string{"local"}},
	"PortBindings":    {fate: later, why: "publishing ports comes in a later release"},
	"PublishAllPorts": {fate: later, why: "publishing ports comes in a later release"},
	"Links":           {fate: later, why: "containers have no names for each other yet"},
	"Umask":           {fate: later, why: "set it in the container"},
	"CgroupnsMode":    {fate: never, why: whyShared, harmless: []string{"private"}},
	"Cgroup":          {fate: never, why: whyShared},
	"UTSMode":         {fate: never, why: whyShared},
	"UsernsMode":      {fate: never, why: "the virtual machine is the boundary, users are not mapped", harmless: []string{"host"}},
	"Runtime":         {fate: never, why: "the only runtime is hyper", harmless: []string{"hyper"}},
	"Isolation":       {fate: never, why: whyWindows, harmless: []string{"default"}},
}

// resourceRules are for container.Resources.
var resourceRules = map[string]rule{
	"CPUShares": {fate: honoured}, "Memory": {fate: honoured}, "NanoCPUs": {fate: honoured}, "CPUPeriod": {fate: honoured},
	"CPUQuota": {fate: honoured}, "CpusetCpus": {fate: honoured}, "MemoryReservation": {fate: honoured}, "MemorySwap": {fate: honoured},
	"PidsLimit": {fate: honoured}, "Ulimits": {fate: honoured},
	"BlkioDeviceReadBps": {fate: honoured}, "BlkioDeviceWriteBps": {fate: honoured},
	"BlkioDeviceReadIOps": {fate: honoured}, "BlkioDeviceWriteIOps": {fate: honoured},

	"CgroupParent":       {fate: never, why: "the container's cgroup is inside its virtual machine"},
	"BlkioWeight":        {fate: later, why: whyBlkio},
	"BlkioWeightDevice":  {fate: later, why: whyBlkio},
	"CPURealtimePeriod":  {fate: never, why: "cgroup v2 has no real-time limits"},
	"CPURealtimeRuntime": {fate: never, why: "cgroup v2 has no real-time limits"},
	"CpusetMems":         {fate: never, why: "the virtual machine has one memory node", harmless: []string{"0"}},
	"Devices":            {fate: later, why: whyDevices},
	"DeviceCgroupRules":  {fate: later, why: whyDevices},
	"DeviceRequests":     {fate: later, why: whyDevices},
	"MemorySwappiness":   {fate: never, why: "cgroup v2 has no swappiness of a container", harmless: []string{"-1"}},
	"OomKillDisable":     {fate: never, why: "cgroup v2 can't disable the OOM killer"},
	"CPUCount":           {fate: never, why: whyWindows},
	"CPUPercent":         {fate: never, why: whyWindows},
	"IOMaximumIOps":      {fate: never, why: whyWindows},
	"IOMaximumBandwidth": {fate: never, why: whyWindows},
}

// endpointRules are for network.EndpointSettings.
var endpointRules = map[string]rule{
	"IPAMConfig": {fate: later, why: whyNetworks, harmless: []string{"{invalid IP invalid IP []}"}},
	"Links":      {fate: later, why: whyNetworks},
	"Aliases":    {fate: later, why: whyNetworks},
	"DriverOpts": {fate: later, why: whyNetworks},
	"MacAddress": {fate: later, why: "addresses are given out by the network"},

	"GwPriority": {fate: noEffect}, // orders several networks

	// What Docker itself only reports.
	"NetworkID": {fate: noEffect}, "EndpointID": {fate: noEffect}, "Gateway": {fate: noEffect}, "IPAddress": {fate: noEffect},
	"IPPrefixLen": {fate: noEffect}, "IPv6Gateway": {fate: noEffect}, "GlobalIPv6Address": {fate: noEffect},
	"GlobalIPv6PrefixLen": {fate: noEffect}, "DNSNames": {fate: noEffect},
}

// checkFields refuses what of a create request can't be had, by name.
func checkFields(req *container.CreateRequest) error {
	if err := refuse("", *req.Config, configRules); err != nil {
		return err
	}
	if err := refuse("HostConfig.", *req.HostConfig, hostRules); err != nil {
		return err
	}
	if err := refuse("HostConfig.", req.HostConfig.Resources, resourceRules); err != nil {
		return err
	}
	for name, ep := range req.NetworkingConfig.EndpointsConfig {
		if !knownNetwork(name) {
			return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("NetworkingConfig.EndpointsConfig: network %s not found: %s", name, whyNetworks))
		}
		if ep == nil {
			continue
		}
		if err := refuse("NetworkingConfig.EndpointsConfig."+name+".", *ep, endpointRules); err != nil {
			return err
		}
	}
	return nil
}

func knownNetwork(name string) bool {
	return slices.Contains([]string{network.NetworkDefault, bridgeName, network.NetworkNone, networkID(bridgeName), networkID(network.NetworkNone)}, name)
}

func refuse(prefix string, v any, rules map[string]rule) error {
	val := reflect.ValueOf(v)
	for i := range val.NumField() {
		field := val.Type().Field(i)
		r := rules[field.Name]
		if r.fate != later && r.fate != never || isEmpty(val.Field(i)) ||
			slices.Contains(r.harmless, fmt.Sprint(reflect.Indirect(val.Field(i)))) {
			continue
		}
		name := field.Name
		if tag, _, _ := strings.Cut(field.Tag.Get("json"), ","); tag != "" {
			name = tag
		}
		if r.fate == never {
			return invalid("%s%s is not supported: %s", prefix, name, r.why)
		}
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("%s%s is not supported yet: %s", prefix, name, r.why))
	}
	return nil
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Pointer:
		return v.IsNil() || v.Elem().IsZero()
	}
	return v.IsZero()
}
