package kube

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hyper-run/hyper/internal/pod"
)

const maxConfigBytes = 1 << 20 // of a ConfigMap or Secret, as Kubernetes

func (d *document) checkData(o *corev1.ConfigMap) {
	size := 0
	for k, v := range o.Data {
		d.valid(join("data", k), k, validation.IsConfigMapKey(k))
		size += len(k) + len(v)
	}
	for k, v := range o.BinaryData {
		d.valid(join("binaryData", k), k, validation.IsConfigMapKey(k))
		if _, twice := o.Data[k]; twice {
			d.problem(join("binaryData", k), "is in data too")
		}
		size += len(k) + len(v)
	}
	if size > maxConfigBytes {
		d.problem("", "has more than %d bytes", maxConfigBytes)
	}
}

// checkSecret moves stringData to data, over what is there.
func (d *document) checkSecret(o *corev1.Secret) {
	size := 0
	if o.Data == nil {
		o.Data = map[string][]byte{}
	}
	for k, v := range o.StringData {
		d.valid(join("stringData", k), k, validation.IsConfigMapKey(k))
		o.Data[k] = []byte(v)
	}
	for k, v := range o.Data {
		if _, checked := o.StringData[k]; !checked {
			d.valid(join("data", k), k, validation.IsConfigMapKey(k))
		}
		size += len(k) + len(v)
	}
	if size > maxConfigBytes {
		d.problem("", "has more than %d bytes", maxConfigBytes)
	}
}

// configMap returns what a ConfigMap of the file says; nil when it is
// optional and not there.
func (b *builder) configMap(at, name string, optional *bool) map[string][]byte {
	o := b.r.configMaps[namespaced(b.meta, name)]
	if o == nil {
		b.missing(at, "ConfigMap", name, optional)
		return nil
	}
	data := make(map[string][]byte, len(o.Data)+len(o.BinaryData))
	for k, v := range o.Data {
		data[k] = []byte(v)
	}
	for k, v := range o.BinaryData {
		data[k] = v
	}
	return data
}

// secret is configMap for Secrets.
func (b *builder) secret(at, name string, optional *bool) map[string][]byte {
	o := b.r.secrets[namespaced(b.meta, name)]
	if o == nil {
		b.missing(at, "Secret", name, optional)
		return nil
	}
	return o.Data
}

func (b *builder) missing(at, kind, name string, optional *bool) {
	switch {
	case name == "":
		b.problem(at, "is needed")
	case optional == nil || !*optional:
		b.problem(at, "%s %s is not in the file", kind, short(name))
	}
}

func (b *builder) podVolumes() {
	for i := range b.spec.Volumes {
		v, at := &b.spec.Volumes[i], index(b.base+"volumes", i)
		if v.Name == "" {
			b.problem(at+".name", "is needed")
		} else {
			b.valid(at+".name", v.Name, validation.IsDNS1123Label(v.Name))
		}
		if _, twice := b.volumes[v.Name]; twice {
			b.problem(at+".name", "there are two volumes %s", short(v.Name))
		}
		out := b.volume(v, at)
		out.Name, out.GID = v.Name, b.group
		b.volumes[v.Name] = v.EmptyDir == nil && v.Ephemeral == nil
		b.out.Spec.Volumes = append(b.out.Spec.Volumes, out)
	}
}

// volume converts one volume: its source decides what it is.
func (b *builder) volume(v *corev1.Volume, at string) pod.Volume {
	var out pod.Volume
	sources := 0
	if s := v.EmptyDir; s != nil {
		sources++
		out = b.emptyDir(s, at+".emptyDir")
	}
	if s := v.Ephemeral; s != nil {
		sources++
		out = b.ephemeral(s, at+".ephemeral")
	}
	f := &files{b: b, group: b.group}
	if s := v.ConfigMap; s != nil {
		sources++
		f.defaultMode(s.DefaultMode, at+".configMap")
		f.keys(b.configMap(at+".configMap.name", s.Name, s.Optional), s.Items, s.Optional, at+".configMap", false)
	}
	if s := v.Secret; s != nil {
		sources++
		f.defaultMode(s.DefaultMode, at+".secret")
		f.keys(b.secret(at+".secret.secretName", s.SecretName, s.Optional), s.Items, s.Optional, at+".secret", true)
	}
	if s := v.DownwardAPI; s != nil {
		sources++
		f.defaultMode(s.DefaultMode, at+".downwardAPI")
		f.fields(s.Items, at+".downwardAPI")
	}
	if s := v.Projected; s != nil {
		sources++
		f.projected(s, at+".projected")
	}
	switch {
	case sources == 0:
		b.problem(at, "has no source: emptyDir, configMap, secret, downwardAPI, projected or ephemeral")
	case sources > 1:
		b.problem(at, "has more than one source")
	case v.EmptyDir == nil && v.Ephemeral == nil:
		out = pod.Volume{Memory: true, Files: f.sorted(at)}
	}
	return out
}

func (b *builder) emptyDir(s *corev1.EmptyDirVolumeSource, at string) pod.Volume {
	v := pod.Volume{Memory: s.Medium == corev1.StorageMediumMemory}
	if s.Medium != corev1.StorageMediumDefault && !v.Memory {
		b.problem(at+".medium", "%q is not supported: only \"\" and Memory are", short(string(s.Medium)))
	}
	if s.SizeLimit != nil {
		v.Bytes = b.amount(at+".sizeLimit", *s.SizeLimit) // 0 is none
	}
	if s.Mode != nil {
		if *s.Mode < 1 || *s.Mode > 0o1777 {
			b.problem(at+".mode", "%#o is not between 01 and 01777", *s.Mode)
		}
		v.Mode = uint32(*s.Mode)
	}
	return v
}

func (b *builder) ephemeral(s *corev1.EphemeralVolumeSource, at string) pod.Volume {
	if s.VolumeClaimTemplate == nil {
		b.problem(at+".volumeClaimTemplate", "is needed")
		return pod.Volume{}
	}
	at += ".volumeClaimTemplate.spec.resources"
	r := s.VolumeClaimTemplate.Spec.Resources
	for name := range r.Limits {
		b.problem(join(at+".limits", string(name)), "not supported: a volume has the size of requests.storage")
	}
	for name := range r.Requests {
		if name != corev1.ResourceStorage {
			b.problem(join(at+".requests", string(name)), "not supported: a volume has the size of requests.storage")
		}
	}
	size, ok := r.Requests[corev1.ResourceStorage]
	if !ok || size.Sign() <= 0 {
		b.problem(at+".requests", "storage is needed")
	}
	return pod.Volume{Bytes: b.amount(join(at+".requests", "storage"), size)}
}

// files are those of a volume that has some from the beginning.
type files struct {
	b     *builder
	group uint32
	mode  uint32
	list  []pod.VolumeFile
}

func (f *files) defaultMode(mode *int32, at string) {
	f.mode = f.fileMode(mode, 0o644, at+".defaultMode")
}

// fileMode is what is asked for. The group of the volume's files can always read them.
func (f *files) fileMode(mode *int32, otherwise uint32, at string) uint32 {
	m := otherwise
	if mode != nil {
		if *mode < 0 || *mode > 0o777 {
			f.b.problem(at, "%#o is not between 0 and 0777", *mode)
			return 0
		}
		m = uint32(*mode)
	}
	if f.group != 0 {
		m |= 0o440
	}
	return m
}

// keys adds the files of a ConfigMap or Secret; all, or those in items.
func (f *files) keys(data map[string][]byte, items []corev1.KeyToPath, optional *bool, at string, secret bool) {
	if len(items) == 0 {
		for k, v := range data {
			f.add(pod.VolumeFile{Path: k, Content: v, Mode: f.mode, Secret: secret}, at)
		}
		return
	}
	for i, item := range items {
		at := index(at+".items", i)
		content, ok := data[item.Key]
		switch {
		case !ok && optional != nil && *optional, data == nil: // the latter was told
		case !ok:
			f.b.problem(at+".key", "there is no key %q", short(item.Key))
		default:
			f.add(pod.VolumeFile{Path: item.Path, Content: content, Mode: f.fileMode(item.Mode, f.mode, at+".mode"), Secret: secret}, at+".path")
		}
	}
}

// fields adds files of what is known about the pod.
func (f *files) fields(items []corev1.DownwardAPIVolumeFile, at string) {
	for i, item := range items {
		at := index(at+".items", i)
		file := pod.VolumeFile{Path: item.Path, Mode: f.fileMode(item.Mode, f.mode, at+".mode")}
		switch {
		case item.FieldRef != nil && item.ResourceFieldRef == nil:
			text, field := f.b.field(item.FieldRef, at+".fieldRef.fieldPath", true)
			file.Content, file.Field = []byte(text), field
		case item.ResourceFieldRef != nil && item.FieldRef == nil:
			if item.ResourceFieldRef.ContainerName == "" {
				f.b.problem(at+".resourceFieldRef.containerName", "is needed")
				continue
			}
			file.Content = []byte(f.b.resource(item.ResourceFieldRef, nil, at+".resourceFieldRef"))
		default:
			f.b.problem(at, "one of fieldRef and resourceFieldRef is needed")
		}
		f.add(file, at+".path")
	}
}

func (f *files) projected(s *corev1.ProjectedVolumeSource, at string) {
	f.defaultMode(s.DefaultMode, at)
	for i, src := range s.Sources {
		at := index(at+".sources", i)
		n := 0
		if p := src.ConfigMap; p != nil {
			n++
			f.keys(f.b.configMap(at+".configMap.name", p.Name, p.Optional), p.Items, p.Optional, at+".configMap", false)
		}
		if p := src.Secret; p != nil {
			n++
			f.keys(f.b.secret(at+".secret.name", p.Name, p.Optional), p.Items, p.Optional, at+".secret", true)
		}
		if p := src.DownwardAPI; p != nil {
			n++
			f.fields(p.Items, at+".downwardAPI")
		}
		if n != 1 {
			f.b.problem(at, "one source is needed, not %d", n)
		}
	}
}

func (f *files) add(file pod.VolumeFile, at string) {
	if len(file.Content) == 0 {
		file.Content = nil
	}
	switch p := file.Path; {
	case p == "" || len(p) > 255 || path.IsAbs(p) || path.Clean(p) != p || p == "." || strings.HasPrefix(p, "..") || strings.ContainsAny(p, "\x00\n"):
		f.b.problem(at, "%q is not a path of a file in the volume", short(p))
	case len(f.list) >= 10_000:
		f.b.problem(at, "are more than 10000 files in a volume")
	default:
		f.list = append(f.list, file)
	}
}

// sorted returns the files by path, and tells which two can't be together.
func (f *files) sorted(at string) []pod.VolumeFile {
	slices.SortFunc(f.list, func(a, b pod.VolumeFile) int { return strings.Compare(a.Path, b.Path) })
	dirs := map[string]string{}
	for i, file := range f.list {
		if i > 0 && f.list[i-1].Path == file.Path {
			f.b.problem(at, "there are two files %s", file.Path)
		}
		for d := path.Dir(file.Path); d != "."; d = path.Dir(d) {
			dirs[d] = file.Path
		}
	}
	for _, file := range f.list {
		if in, ok := dirs[file.Path]; ok {
			f.b.problem(at, "%s is a file, and a directory of %s", file.Path, in)
		}
	}
	return f.list
}
