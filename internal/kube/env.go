package kube

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hyper-run/hyper/internal/pod"
)

// An environment is a container's variables while they are read. Values are
// texts for pod.Expand: a reference stands for what is known at the start only.
type environment struct {
	b       *builder
	names   []string // in order
	values  map[string]string
	plain   map[string]string // of variables with a value in the file, as written
	fields  []pod.EnvField
	dynamic bool // something refers to a field
}

func newEnvironment(b *builder) *environment {
	return &environment{b: b, values: map[string]string{}, plain: map[string]string{}}
}

// set sets a variable, also again.
func (e *environment) set(at, name, value string) {
	if slices.ContainsFunc(e.fields, func(f pod.EnvField) bool { return f.Name == name }) {
		e.b.problem(at, "%s is set twice, and what it is first is known only when the pod runs", name)
	}
	if _, again := e.values[name]; !again {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

// field sets a variable to what is known at the start.
func (e *environment) field(at, name, field string) {
	e.set(at, name, "$("+name+")")
	e.names = slices.DeleteFunc(e.names, func(n string) bool { return n == name })
	e.fields = append(e.fields, pod.EnvField{Name: name, Field: field})
}

// expand replaces what is known in a text of the file.
func (e *environment) expand(at, text string) string {
	if strings.ContainsRune(text, 0) {
		e.b.problem(at, "has a zero byte in it")
	}
	out, err := pod.ExpandEarly(text, func(name string) (string, bool) {
		value, ok := e.values[name]
		if strings.Contains(strings.ReplaceAll(value, "$$", ""), "$(") {
			e.dynamic = true
		}
		return value, ok
	})
	if err != nil {
		e.b.problem(at, "%v", err)
		return ""
	}
	ok := e.b.r.expanded >= 0
	if e.b.r.expanded -= len(out); ok && e.b.r.expanded < 0 {
		e.b.problem(at, "the arguments and variables of the file are more than %d bytes together", maxExpanded)
	}
	if e.b.r.expanded < 0 {
		return ""
	}
	return out
}

// static is a text in which everything must be known now.
func (e *environment) static(at, text string) string {
	was := e.dynamic
	e.dynamic = false
	out := e.expand(at, text)
	if e.dynamic {
		e.b.problem(at, "refers to a variable that is known only when the pod runs")
	}
	e.dynamic = was
	return final(out)
}

// final is what a text comes to without any variable.
func final(text string) string {
	s, _ := pod.Expand(text, func(string) (string, bool) { return "", false }) // it only gets shorter
	return s
}

// finish puts the environment and the arguments into a container.
func (e *environment) finish(c *Container, at string, command, args []string) {
	for i, a := range command {
		c.Command = append(c.Command, e.expand(index(at+".command", i), a))
	}
	for i, a := range args {
		c.Args = append(c.Args, e.expand(index(at+".args", i), a))
	}
	for _, n := range e.names {
		c.Spec.Env = append(c.Spec.Env, n+"="+e.values[n])
	}
	c.Spec.EnvFields, c.Spec.Expand = e.fields, e.dynamic
	if e.dynamic {
		return
	}
	for _, list := range [][]string{c.Command, c.Args, c.Spec.Env} {
		for i := range list {
			list[i] = final(list[i])
		}
	}
}

// read reads envFrom and env, in this order as Kubernetes does.
func (e *environment) read(in *corev1.Container, at string) {
	for i, from := range in.EnvFrom {
		e.from(from, index(at+".envFrom", i))
	}
	for i, v := range in.Env {
		at := index(at+".env", i)
		if v.Name == "" {
			e.b.problem(at+".name", "is needed")
			continue
		}
		e.b.valid(at+".name", v.Name, validation.IsRelaxedEnvVarName(v.Name))
		switch {
		case v.ValueFrom == nil:
			e.plain[v.Name] = v.Value
			e.set(at, v.Name, e.expand(at+".value", v.Value))
		case v.Value != "":
			e.b.problem(at, "has both value and valueFrom")
		default:
			e.valueFrom(v.Name, v.ValueFrom, in, at)
		}
	}
}

func (e *environment) from(from corev1.EnvFromSource, at string) {
	var data map[string][]byte
	switch {
	case from.ConfigMapRef != nil && from.SecretRef == nil:
		data = e.b.configMap(at+".configMapRef.name", from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
	case from.SecretRef != nil && from.ConfigMapRef == nil:
		data = e.b.secret(at+".secretRef.name", from.SecretRef.Name, from.SecretRef.Optional)
	default:
		e.b.problem(at, "one of configMapRef and secretRef is needed")
	}
	for _, k := range sortedKeys(data) {
		name := from.Prefix + k
		e.b.valid(at, name, validation.IsRelaxedEnvVarName(name))
		e.data(at, name, data[k])
	}
}

// data sets a variable to what is not expanded.
func (e *environment) data(at, name string, value []byte) {
	e.set(at, name, e.expand(at, pod.EscapeRefs(string(value))))
}

func (e *environment) valueFrom(name string, from *corev1.EnvVarSource, in *corev1.Container, at string) {
	at += ".valueFrom"
	sources := 0
	if s := from.FieldRef; s != nil {
		sources++
		text, field := e.b.field(s, at+".fieldRef.fieldPath", false)
		if field != "" {
			e.field(at, name, field)
		} else {
			e.data(at, name, []byte(text))
		}
	}
	if s := from.ResourceFieldRef; s != nil {
		sources++
		e.data(at, name, []byte(e.b.resource(s, in, at+".resourceFieldRef")))
	}
	if s := from.ConfigMapKeyRef; s != nil {
		sources++
		data := e.b.configMap(at+".configMapKeyRef.name", s.Name, s.Optional)
		e.key(name, data, s.Key, s.Optional, at+".configMapKeyRef.key")
	}
	if s := from.SecretKeyRef; s != nil {
		sources++
		data := e.b.secret(at+".secretKeyRef.name", s.Name, s.Optional)
		e.key(name, data, s.Key, s.Optional, at+".secretKeyRef.key")
	}
	if sources != 1 {
		e.b.problem(at, "one source is needed, not %d", sources)
	}
}

func (e *environment) key(name string, data map[string][]byte, key string, optional *bool, at string) {
	value, ok := data[key]
	switch {
	case ok:
		e.data(at, name, value)
	case data != nil && (optional == nil || !*optional):
		e.b.problem(at, "there is no key %q", short(key))
	}
}

var subscript = regexp.MustCompile(`^metadata\.(labels|annotations)\['([^']*)'\]$`)

// field says what a fieldRef stands for: a text, or what is known at the
// start, named as in pod.EnvField. Maps as a whole are for files only.
func (b *builder) field(ref *corev1.ObjectFieldSelector, at string, file bool) (text, field string) {
	switch p := ref.FieldPath; {
	case p == "metadata.name":
		return b.name, ""
	case p == "metadata.namespace":
		return namespace(b.meta), ""
	case p == "spec.nodeName":
		return b.r.o.Node, ""
	case p == "spec.serviceAccountName":
		return "default", ""
	case p == "status.hostIPs":
		return "", "status.hostIP"
	case p == "metadata.uid", p == "status.podIP", p == "status.podIPs", p == "status.hostIP":
		return "", p
	case p == "metadata.labels" && file:
		return formatMap(b.meta.Labels), ""
	case p == "metadata.annotations" && file:
		return formatMap(b.out.Spec.Annotations), ""
	}
	m := subscript.FindStringSubmatch(ref.FieldPath)
	switch {
	case m == nil:
		b.problem(at, "%q is not supported: there are metadata.name, .namespace, .uid, .labels['KEY'], .annotations['KEY'], spec.nodeName, spec.serviceAccountName, status.podIP, .podIPs, .hostIP, .hostIPs", short(ref.FieldPath))
		return "", ""
	case m[1] == "labels":
		return b.meta.Labels[m[2]], ""
	}
	return b.out.Spec.Annotations[m[2]], ""
}

// formatMap writes labels as files of the downward API have them.
func formatMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		lines = append(lines, fmt.Sprintf("%s=%q", k, m[k]))
	}
	return strings.Join(lines, "\n")
}

// resource says what a container gets; in is the one that asks.
func (b *builder) resource(ref *corev1.ResourceFieldSelector, in *corev1.Container, at string) string {
	if ref.ContainerName != "" {
		in = nil
		for _, list := range [][]corev1.Container{b.spec.InitContainers, b.spec.Containers} {
			for i := range list {
				if list[i].Name == ref.ContainerName {
					in = &list[i]
				}
			}
		}
		if in == nil {
			b.problem(at+".containerName", "there is no container %s", short(ref.ContainerName))
			return ""
		}
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	q, ok := in.Resources.Limits[corev1.ResourceName(name)]
	if kind == "requests" {
		if r, asked := in.Resources.Requests[corev1.ResourceName(name)]; asked {
			q = r
		}
	} else if !ok {
		q = b.most(name)
	}
	if kind != "limits" && kind != "requests" || !contains(resourceNames, name) {
		b.problem(at+".resource", "%q is not supported: limits and requests of cpu, memory and ephemeral-storage are", short(ref.Resource))
		return ""
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if divisor.Sign() < 0 || divisor.Cmp(resource.MustParse("1m")) < 0 || divisor.CmpInt64(1<<60) > 0 {
		b.problem(at+".divisor", "%s is not supported", divisor.String())
		return ""
	}
	if name == "cpu" {
		return ceil(b.milli(at, q), divisor.MilliValue())
	}
	return ceil(b.amount(at, q), divisor.Value())
}

var resourceNames = []string{"cpu", "memory", "ephemeral-storage"}

// most is what a container without a limit can use.
func (b *builder) most(name string) resource.Quantity {
	n := b.r.o.DiskBytes
	switch name {
	case "cpu":
		n = int64(b.r.o.CPUs)
	case "memory":
		n = b.r.o.MemoryBytes
	}
	return *resource.NewQuantity(n, resource.DecimalSI)
}

func ceil(n, by int64) string {
	q := n / by
	if n%by != 0 {
		q++
	}
	return strconv.FormatInt(q, 10)
}
