package kube

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hyper-run/hyper/internal/pod"
)

// podSpec writes the pod in Kubernetes' words, as far as they go.
func (g *generator) podSpec() (*corev1.PodSpec, error) {
	s := g.spec
	out := &corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64(*s.StopTimeout)),
		SecurityContext:               &corev1.PodSecurityContext{},
	}
	switch {
	case s.Hostname == "" || s.Hostname == g.name:
	case len(validation.IsDNS1123Label(s.Hostname)) == 0:
		out.Hostname = s.Hostname
	case len(validation.IsDNS1123Subdomain(s.Hostname)) == 0 && len(s.Hostname) <= 64:
		out.HostnameOverride = &s.Hostname
	}
	if len(validation.IsDNS1123Label(s.Domainname)) == 0 {
		out.Subdomain = s.Domainname
	}
	if s.SharePID {
		out.ShareProcessNamespace = new(true)
	}
	out.HostAliases = hostAliases(s.ExtraHosts)
	writeDNS(out, s)
	for _, name := range sortedKeys(s.Sysctls) {
		out.SecurityContext.Sysctls = append(out.SecurityContext.Sysctls, corev1.Sysctl{Name: name, Value: s.Sysctls[name]})
	}
	if limits := quantities(s.Resources.NanoCPUs, s.Resources.MemoryBytes, 0); limits != nil {
		out.Resources = &corev1.ResourceRequirements{Limits: limits}
	}
	if err := g.groups(out.SecurityContext); err != nil {
		return nil, err
	}
	for _, v := range s.Volumes {
		out.Volumes = append(out.Volumes, g.writeVolume(v))
	}
	out.RestartPolicy = g.restartPolicy()
	for _, c := range g.containers {
		w := g.writeContainer(c, out)
		if c.spec.Role == pod.RoleMain {
			out.Containers = append(out.Containers, w)
		} else {
			out.InitContainers = append(out.InitContainers, w)
		}
	}
	return out, nil
}

// hostAliases are nil when one can't be written.
func hostAliases(hosts []string) []corev1.HostAlias {
	var out []corev1.HostAlias
	for _, h := range hosts {
		name, addr, _ := strings.Cut(h, ":")
		if ip, err := netip.ParseAddr(addr); err != nil || ip.Zone() != "" || len(validation.IsDNS1123Subdomain(name)) > 0 {
			return nil
		}
		if n := len(out); n > 0 && out[n-1].IP == addr {
			out[n-1].Hostnames = append(out[n-1].Hostnames, name)
		} else {
			out = append(out, corev1.HostAlias{IP: addr, Hostnames: []string{name}})
		}
	}
	return out
}

func writeDNS(out *corev1.PodSpec, s pod.PodSpec) {
	if len(s.DNS) > maxDNSServers {
		return
	}
	if len(s.DNS) > 0 {
		out.DNSPolicy = corev1.DNSNone
	}
	if len(s.DNS)+len(s.DNSSearch)+len(s.DNSOptions) == 0 {
		return
	}
	out.DNSConfig = &corev1.PodDNSConfig{Nameservers: s.DNS, Searches: s.DNSSearch}
	for _, o := range s.DNSOptions {
		name, value, ok := strings.Cut(o, ":")
		opt := corev1.PodDNSConfigOption{Name: name}
		if ok {
			opt.Value = &value
		}
		out.DNSConfig.Options = append(out.DNSConfig.Options, opt)
	}
}

// groups writes the group of the volumes, and those that all containers have.
func (g *generator) groups(out *corev1.PodSecurityContext) error {
	for i, v := range g.spec.Volumes {
		if v.GID != g.spec.Volumes[0].GID {
			return fmt.Errorf("volumes %s and %s have different groups, which a pod file can't say", g.spec.Volumes[0].Name, g.spec.Volumes[i].Name)
		}
	}
	fsGroup := ""
	if len(g.spec.Volumes) > 0 && g.spec.Volumes[0].GID != 0 {
		gid := int64(g.spec.Volumes[0].GID)
		out.FSGroup = &gid
		fsGroup = strconv.FormatInt(gid, 10)
	}
	all := g.containers[0].spec.Groups
	for _, c := range g.containers {
		if strings.Join(all, " ") != strings.Join(c.spec.Groups, " ") {
			return nil
		}
	}
	if n := len(all); n > 0 && all[n-1] == fsGroup {
		all = all[:n-1]
	}
	var ids []int64
	for _, a := range all {
		id, err := strconv.ParseInt(a, 10, 32)
		if err != nil {
			return nil
		}
		ids = append(ids, id)
	}
	out.SupplementalGroups = ids
	return nil
}

// quantities are limits or requests; zero is none.
func quantities(nanoCPUs, memory, disk int64) corev1.ResourceList {
	list := corev1.ResourceList{}
	if nanoCPUs != 0 {
		list[corev1.ResourceCPU] = *resource.NewMilliQuantity(nanoCPUs/1e6, resource.DecimalSI)
	}
	if memory != 0 {
		list[corev1.ResourceMemory] = *resource.NewQuantity(memory, resource.BinarySI)
	}
	if disk != 0 {
		list[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(disk, resource.BinarySI)
	}
	if len(list) == 0 {
		return nil
	}
	return list
}

// writeVolume writes a volume, its files as documents of their own.
func (g *generator) writeVolume(v pod.Volume) corev1.Volume {
	out := corev1.Volume{Name: v.Name}
	if len(v.Files) == 0 {
		dir := &corev1.EmptyDirVolumeSource{}
		if v.Memory {
			dir.Medium = corev1.StorageMediumMemory
		}
		if v.Bytes != 0 {
			dir.SizeLimit = resource.NewQuantity(v.Bytes, resource.BinarySI)
		}
		if v.Mode != 0 {
			dir.Mode = new(int32(v.Mode))
		}
		out.EmptyDir = dir
		return out
	}
	projected := &corev1.ProjectedVolumeSource{}
	name := g.name + "-" + v.Name
	var plain, secret []pod.VolumeFile
	var fields []corev1.DownwardAPIVolumeFile
	for _, f := range v.Files {
		switch {
		case f.Field != "":
			fields = append(fields, corev1.DownwardAPIVolumeFile{Path: f.Path, FieldRef: &corev1.ObjectFieldSelector{FieldPath: f.Field}, Mode: new(int32(f.Mode))})
		case f.Secret:
			secret = append(secret, f)
		default:
			plain = append(plain, f)
		}
	}
	if len(plain) > 0 {
		items := g.writeConfig(name, plain)
		projected.Sources = append(projected.Sources, corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items}})
	}
	if len(secret) > 0 {
		items := g.writeSecret(name, secret)
		projected.Sources = append(projected.Sources, corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items}})
	}
	if len(fields) > 0 {
		projected.Sources = append(projected.Sources, corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: fields}})
	}
	out.VolumeSource = simplest(projected)
	return out
}

// simplest is a volume of one source, if one is all it has.
func simplest(p *corev1.ProjectedVolumeSource) corev1.VolumeSource {
	switch s := p.Sources[0]; {
	case len(p.Sources) > 1:
		return corev1.VolumeSource{Projected: p}
	case s.ConfigMap != nil:
		return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: s.ConfigMap.LocalObjectReference, Items: s.ConfigMap.Items}}
	case s.Secret != nil:
		return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: s.Secret.Name, Items: s.Secret.Items}}
	default:
		return corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: s.DownwardAPI.Items}}
	}
}

func (g *generator) writeConfig(name string, files []pod.VolumeFile) []corev1.KeyToPath {
	cm := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, Data: map[string]string{}, BinaryData: map[string][]byte{}}
	cm.Name = name
	items := keyItems(files, func(key string, content []byte) {
		if utf8.Valid(content) {
			cm.Data[key] = string(content)
		} else {
			cm.BinaryData[key] = content
		}
	})
	g.configs = append(g.configs, cm)
	return items
}

func (g *generator) writeSecret(name string, files []pod.VolumeFile) []corev1.KeyToPath {
	sec := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, Data: map[string][]byte{}, StringData: map[string]string{}}
	sec.Name = name
	items := keyItems(files, func(key string, content []byte) {
		if utf8.Valid(content) {
			sec.StringData[key] = string(content)
		} else {
			sec.Data[key] = content
		}
	})
	g.configs = append(g.configs, sec)
	return items
}

// keyItems gives each file a key, and says which is which file: nothing when
// keys and paths are the same, and the modes ordinary.
func keyItems(files []pod.VolumeFile, put func(key string, content []byte)) []corev1.KeyToPath {
	var items []corev1.KeyToPath
	plain := true
	seen := map[string]bool{}
	for i, f := range files {
		key := strings.Map(func(r rune) rune {
			if r < 0x80 && strings.ContainsRune("-._", r) || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
				return r
			}
			return '_'
		}, f.Path)
		if seen[key] || len(validation.IsConfigMapKey(key)) > 0 {
			key = fmt.Sprintf("file-%d", i)
		}
		for seen[key] {
			key += "_"
		}
		seen[key] = true
		put(key, f.Content)
		item := corev1.KeyToPath{Key: key, Path: f.Path}
		if f.Mode != 0o644 {
			item.Mode = new(int32(f.Mode))
		}
		plain = plain && key == f.Path && f.Mode == 0o644
		items = append(items, item)
	}
	if plain {
		return nil
	}
	return items
}
