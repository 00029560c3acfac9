package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/hyper-run/hyper/internal/pod"
)

// What pods and containers have when nothing is said, which a file need not repeat.
const (
	defaultStop      = 10 // seconds
	defaultDiskBytes = 10 << 30
)

// Generate writes a pod, also one made for one container, as a pod file:
// Parse and Complete make an equal pod of it. What Kubernetes has no words for is in
// annotations (run.hyper.*), what even they can't say is left out and told in a
// comment at the top. What images declare is part of it; files of volumes are in
// ConfigMaps, and Secrets if they came from some.
func Generate(p pod.PodInfo) ([]byte, error) {
	g, err := newGenerator(p)
	if err != nil {
		return nil, fmt.Errorf("generate pod %s: %w", p.Name, err)
	}
	// Written, read, and what is different then said by annotations.
	for _, annotated := range []bool{false, true} {
		text, err := g.text()
		if err != nil {
			return nil, fmt.Errorf("generate pod %s: %w", g.name, err)
		}
		f, err := Parse(text, Options{File: "its file", Node: "node"})
		if err != nil {
			return nil, fmt.Errorf("generate pod %s: it can't be written: %w", g.name, err)
		}
		left, err := g.annotate(&f.Pods[0])
		if err != nil {
			return nil, fmt.Errorf("generate pod %s: %w", g.name, err)
		}
		if annotated && left {
			return nil, fmt.Errorf("generate pod %s: it can't be written: it would not be the same", g.name)
		}
		if annotated || !left {
			return text, nil
		}
	}
	panic("unreachable")
}

// A generator holds a pod as its file shall say it.
type generator struct {
	name       string
	comments   []string
	spec       pod.PodSpec
	containers []generated

	orders  map[string]string // annotations to Hyper
	configs []any             // ConfigMaps and Secrets
}

type generated struct {
	name string
	spec pod.Spec
}

// newGenerator brings a pod into the form in which it comes from Parse.
func newGenerator(p pod.PodInfo) (*generator, error) {
	if len(p.Containers) == 0 {
		return nil, fmt.Errorf("it has no containers, and a pod file needs one")
	}
	g := &generator{name: p.Name, spec: p.Spec, orders: map[string]string{}}
	if p.Name == "" { // made for its first container, whose settings are the pod's
		c := p.Containers[0]
		s := c.Spec
		g.name = c.Name
		g.spec = pod.PodSpec{
			Hostname: s.Hostname, Domainname: s.Domainname, ExtraHosts: s.ExtraHosts, DNS: s.DNS, DNSSearch: s.DNSSearch, DNSOptions: s.DNSOptions,
			Network: s.Network, ShmBytes: s.ShmBytes, Kernel: s.Kernel, StopTimeout: s.StopTimeout,
		}
	}
	if name := kubeName(g.name, 253); name != g.name {
		g.comment("the pod is called %s here", g.name)
		g.name = name
	}
	g.spec.Sysctls = maps.Clone(g.spec.Sysctls)
	g.spec.Edge, g.spec.UntilDone = nil, false // a pod of a file always is until it is done
	if g.spec.StopTimeout == nil {
		g.spec.StopTimeout = new(int)
		*g.spec.StopTimeout = defaultStop
	}
	names := map[string]bool{}
	for _, c := range p.Containers {
		name := c.Spec.Labels[labelContainer]
		if name == "" {
			name = kubeName(c.Name, 63)
		}
		for i := 2; names[name]; i++ {
			name = fmt.Sprintf("%.58s-%d", kubeName(c.Name, 63), i)
		}
		names[name] = true
		g.containers = append(g.containers, generated{name, g.normal(c, p.Name == "")})
	}
	return g, nil
}

// normal is a container's Spec without what its pod says, its image brings,
// or an edge keeps.
func (g *generator) normal(c pod.Container, alone bool) pod.Spec {
	s := c.Spec
	for k, v := range s.Sysctls {
		if g.spec.Sysctls == nil {
			g.spec.Sysctls = map[string]string{}
		}
		g.spec.Sysctls[k] = v
	}
	if s.PIDMode != "" && s.PIDMode != "pod" && s.PIDMode != "vm" {
		g.comment("container %s shares the PIDs of container %s: left out", c.Name, s.PIDMode)
		s.PIDMode = ""
	}
	s.Env = nil
	for _, e := range c.Spec.Env {
		if name, _, ok := strings.Cut(e, "="); ok && len(validation.IsRelaxedEnvVarName(name)) == 0 {
			s.Env = append(s.Env, e)
		} else {
			g.comment("container %s: variable %q: left out", c.Name, name)
		}
	}
	if alone { // these are the pod's
		s.ExtraHosts, s.DNS, s.DNSSearch, s.DNSOptions = nil, nil, nil, nil
		if reflect.DeepEqual(s.StopTimeout, g.spec.StopTimeout) {
			s.StopTimeout = nil
		}
	}
	if s.Restart.Policy == "" {
		s.Restart.Policy = "no"
	}
	return strip(s)
}

// strip is what of a container's Spec is compared.
func strip(s pod.Spec) pod.Spec {
	s.ImageID, s.Layers, s.Edge, s.JoinNet, s.Kernel, s.Sysctls, s.ShmBytes = "", nil, nil, "", "", nil, 0
	s.Hostname, s.Domainname, s.Network = "", "", ""
	if s.DiskBytes == defaultDiskBytes {
		s.DiskBytes = 0
	}
	s.Labels = maps.Clone(s.Labels)
	maps.DeleteFunc(s.Labels, func(k, _ string) bool { return k == labelPod || k == labelNamespace || k == labelContainer })
	return s
}

func (g *generator) comment(format string, a ...any) {
	g.comments = append(g.comments, strings.ReplaceAll(fmt.Sprintf(format, a...), "\n", " "))
}

// kubeName makes a name that Kubernetes takes of one that Docker does.
func kubeName(name string, most int) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' && most > 63 {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	for strings.Contains(clean, ".-") || strings.Contains(clean, "-.") || strings.Contains(clean, "..") {
		clean = strings.NewReplacer(".-", "-", "-.", "-", "..", ".").Replace(clean)
	}
	clean = strings.Trim(clean[:min(len(clean), most)], "-.")
	if clean == "" {
		return "pod"
	}
	return clean
}

// annotate sets the annotations that make what was read the same as what
// was meant, and says whether there are new ones.
func (g *generator) annotate(p *Pod) (bool, error) {
	was := len(g.orders)
	changed := false
	set := func(key string, patch map[string]json.RawMessage) error {
		if len(patch) == 0 {
			return nil
		}
		text, err := json.Marshal(patch)
		changed = changed || was == 0 || g.orders[key] != string(text)
		g.orders[key] = string(text)
		return err
	}
	patch, err := difference(g.spec, p.Spec, podPatch)
	if err == nil {
		err = set(annotationPod, patch)
	}
	if err != nil {
		return false, err
	}
	for i := range g.containers {
		name := g.containers[i].name
		c := p.Containers[slices.IndexFunc(p.Containers, func(c Container) bool { return c.Name == name })]
		got, err := c.Complete(ImageConfig{})
		if err != nil {
			return false, err
		}
		patch, err := difference(g.containers[i].spec, strip(got), containerPatch)
		if err == nil {
			err = set(annotationContainer+name, patch)
		}
		if err != nil {
			return false, fmt.Errorf("container %s: %w", name, err)
		}
	}
	return changed, nil
}

// difference is what a patch of got must say to make it want. It fails when
// a patch may not.
func difference(want, got any, may []string) (map[string]json.RawMessage, error) {
	patch := map[string]json.RawMessage{}
	w, g := reflect.ValueOf(want), reflect.ValueOf(got)
	for name, i := range fieldsOf(w.Type()) {
		a, err := json.Marshal(w.FieldByIndex(i).Interface())
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(g.FieldByIndex(i).Interface())
		if err != nil {
			return nil, err
		}
		nothing := []string{"null", "[]", "{}"}
		masks := name == "maskedPaths" || name == "readonlyPaths" // null is not []
		if bytes.Equal(a, b) || !masks && contains(nothing, string(a)) && contains(nothing, string(b)) {
			continue
		}
		if !contains(may, name) {
			return nil, fmt.Errorf("its %s can't be written in a pod file", name)
		}
		patch[name] = a
	}
	return patch, nil
}

// text writes all documents.
func (g *generator) text() ([]byte, error) {
	g.configs = nil
	spec, err := g.podSpec()
	if err != nil {
		return nil, err
	}
	annotations := maps.Clone(g.orders)
	if validAnnotations(g.spec.Annotations) {
		maps.Copy(annotations, g.spec.Annotations)
	}
	if g.spec.Kernel != "" {
		annotations[annotationKernel] = g.spec.Kernel
	}
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Spec: *spec}
	p.Name, p.Annotations = g.name, annotations
	if validLabels(g.spec.Labels) {
		p.Labels = g.spec.Labels
	}
	var b bytes.Buffer
	for _, c := range g.comments {
		fmt.Fprintf(&b, "# %s\n", c)
	}
	for i, doc := range append(g.configs, p) {
		if i > 0 {
			b.WriteString("---\n")
		}
		text, err := document2yaml(doc)
		if err != nil {
			return nil, err
		}
		b.Write(text)
	}
	return b.Bytes(), nil
}

// document2yaml writes an object without what Kubernetes' types write of what is empty.
func document2yaml(doc any) ([]byte, error) {
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&m); err != nil {
		return nil, err
	}
	delete(m, "status")
	if spec, ok := m["spec"].(map[string]any); ok {
		for _, list := range []string{"containers", "initContainers"} {
			items, _ := spec[list].([]any)
			for _, c := range items {
				if c := c.(map[string]any); len(c["resources"].(map[string]any)) == 0 {
					delete(c, "resources")
				}
			}
		}
	}
	return yaml.Marshal(m)
}

func validLabels(m map[string]string) bool {
	for k, v := range m {
		if len(validation.IsQualifiedName(k)) > 0 || len(validation.IsValidLabelValue(v)) > 0 {
			return false
		}
	}
	return true
}

func validAnnotations(m map[string]string) bool {
	for k := range m {
		if len(validation.IsQualifiedName(strings.ToLower(k))) > 0 || strings.HasPrefix(k, annotationPrefix) {
			return false
		}
	}
	return true
}
