// Package kube reads and writes Kubernetes' pod files: text in, what
// internal/pod takes out, and back. It talks to nobody, keeps nothing and
// reads no file.
//
// What a file says is honoured, or refused by name and line; what has no
// effect here is said in a warning. fates.go lists every field of
// Kubernetes' types with what becomes of it. The defaults are those that the
// API server and the kubelet would apply.
package kube

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hyper-run/hyper/internal/pod"
)

// Limits of a pod file.
const (
	MaxBytes    = 4 << 20 // of the text
	maxNodes    = 200_000 // values in it, those behind aliases each time they are named
	maxDepth    = 64
	maxPods     = 100
	maxExpanded = 16 << 20 // bytes of all arguments and variables once $(NAME) is replaced
)

// Options say what the text can't.
type Options struct {
	File string // its name, for messages; "": "pod file"
	Node string // this host's name, for spec.nodeName
	// What a container without limits can use, for resourceFieldRef.
	CPUs        int
	MemoryBytes int64
	DiskBytes   int64
}

// A File is what a pod file asks for.
type File struct {
	Pods     []Pod    // at least one
	Warnings []string // what has no effect, with its line
}

// A Pod is one pod of a file.
type Pod struct {
	Name       string
	Spec       pod.PodSpec
	Containers []Container // init containers and sidecars first, in the file's order
}

// A PullPolicy says when an image is pulled.
type PullPolicy string

// The pull policies.
const (
	PullAlways       PullPolicy = "Always"
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullNever        PullPolicy = "Never"
)

// A Container is one container of a pod; Complete makes it whole.
type Container struct {
	Name   string // in its pod
	Unique string // POD-NAME: among all containers
	Image  string
	Pull   PullPolicy
	// Spec lacks what comes from the image: Image, ImageID, Layers, Args, and
	// parts of Env, User, Dir and StopSignal.
	Spec    pod.Spec
	Command []string // instead of the image's entrypoint and command
	Args    []string // instead of the image's command

	group   *int64 // runAsGroup
	nonRoot bool   // runAsNonRoot
}

// Labels that containers get, as the kubelet gives them.
const (
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelContainer = "io.kubernetes.container.name"
)

// A reader is one reading of a file.
type reader struct {
	o        Options
	text     []byte
	problems problems
	warnings []string
	nodes    int // how many more may be looked at
	expanded int // how many more bytes of expanded text there may be

	documents  []*document
	configMaps map[string]*corev1.ConfigMap // by namespace/name
	secrets    map[string]*corev1.Secret
	pods       []Pod
}

// Parse reads a pod file: documents of YAML or JSON with at least one Pod,
// Deployment or Job, and the ConfigMaps and Secrets they name. Its error is
// of the kind InvalidArgument and has a line for each problem, each with
// the file's name and the line in it.
func Parse(data []byte, o Options) (*File, error) {
	if o.File == "" {
		o.File = "pod file"
	}
	r := &reader{
		o: o, text: data, nodes: maxNodes, expanded: maxExpanded,
		configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{},
	}
	r.problems.file = o.File
	r.read()
	if !r.problems.any() {
		for _, d := range r.documents {
			r.collect(d)
		}
	}
	if !r.problems.any() {
		for _, d := range r.documents {
			r.convert(d)
		}
	}
	if !r.problems.any() && len(r.pods) == 0 {
		r.problems.add(0, "", "there is no Pod, Deployment or Job in it")
	}
	if r.problems.any() {
		return nil, &r.problems
	}
	return &File{Pods: r.pods, Warnings: r.warnings}, nil
}

// read decodes all documents.
func (r *reader) read() {
	nodes, line, err := parseNodes(r.text)
	if err != nil {
		r.problems.add(line, "", "%v", err)
		return
	}
	for _, n := range nodes {
		r.object(n, "")
	}
}

// kinds are the objects that a file may have, by apiVersion and kind.
var kinds = map[string]func() any{
	"v1/Pod":             func() any { return new(corev1.Pod) },
	"v1/ConfigMap":       func() any { return new(corev1.ConfigMap) },
	"v1/Secret":          func() any { return new(corev1.Secret) },
	"apps/v1/Deployment": func() any { return new(appsv1.Deployment) },
	"batch/v1/Job":       func() any { return new(batchv1.Job) },
}

// object decodes one object, or each in a List.
func (r *reader) object(n *yaml.Node, path string) {
	d := &document{r: r, pos: map[string]int{"": n.Line}, prefix: path}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return // an empty document
	}
	if n.Kind != yaml.MappingNode {
		d.problem("", "not an object, but %s", kindOf(n))
		return
	}
	version, kind := member(n, "apiVersion"), member(n, "kind")
	if version == nil || kind == nil || version.Value == "" || kind.Value == "" {
		d.problem("", "apiVersion and kind are needed")
		return
	}
	name := version.Value + "/" + kind.Value
	if name == "v1/List" {
		r.list(d, n, path)
		return
	}
	make := kinds[name]
	if make == nil {
		d.pos["kind"] = kind.Line
		d.problem("kind", "%s of %s is not supported: only Pod, ConfigMap, Secret and List of v1, Deployment of apps/v1 and Job of batch/v1 are", kind.Value, version.Value)
		return
	}
	d.object = make()
	d.decodeObject(n)
	r.documents = append(r.documents, d)
}

func (r *reader) list(d *document, n *yaml.Node, path string) {
	if path != "" {
		d.problem("kind", "a List in a List is not supported")
		return
	}
	for _, e := range d.entries(n, "") {
		switch e.key.Value {
		case "apiVersion", "kind", "metadata":
		case "items":
			items := follow(e.value)
			if items.Kind != yaml.SequenceNode {
				d.pos["items"] = items.Line
				d.problem("items", "a list is needed, not %s", kindOf(items))
				return
			}
			for i, item := range items.Content {
				r.object(follow(item), fmt.Sprintf("items[%d].", i))
			}
		default:
			d.pos[e.key.Value] = e.key.Line
			d.problem(e.key.Value, "unknown field")
		}
	}
}

// collect puts ConfigMaps and Secrets where pods find them.
func (r *reader) collect(d *document) {
	switch o := d.object.(type) {
	case *corev1.ConfigMap:
		d.checkName("metadata.name", o.Name)
		d.checkData(o)
		key := namespaced(o.ObjectMeta, o.Name)
		if r.configMaps[key] != nil {
			d.problem("metadata.name", "there are two ConfigMaps %s", o.Name)
		}
		r.configMaps[key] = o
	case *corev1.Secret:
		d.checkName("metadata.name", o.Name)
		d.checkSecret(o)
		key := namespaced(o.ObjectMeta, o.Name)
		if r.secrets[key] != nil {
			d.problem("metadata.name", "there are two Secrets %s", o.Name)
		}
		r.secrets[key] = o
	}
}

func namespaced(m metav1.ObjectMeta, name string) string { return namespace(m) + "/" + name }

func namespace(m metav1.ObjectMeta) string {
	if m.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return m.Namespace
}

// convert makes pods of what has some.
func (r *reader) convert(d *document) {
	switch o := d.object.(type) {
	case *corev1.Pod:
		r.pod(d, template{name: o.Name, nameAt: "metadata.name", meta: o.ObjectMeta, spec: &o.Spec})
	case *appsv1.Deployment:
		r.deployment(d, o)
	case *batchv1.Job:
		r.job(d, o)
	}
}

func (r *reader) deployment(d *document, o *appsv1.Deployment) {
	n := int32(1)
	if o.Spec.Replicas != nil {
		n = *o.Spec.Replicas
	}
	if n < 0 || n > maxPods {
		d.problem("spec.replicas", "%d is not between 0 and %d", n, maxPods)
		return
	}
	if o.Spec.Selector == nil {
		d.problem("spec.selector", "is needed")
		return
	}
	sel, err := metav1.LabelSelectorAsSelector(o.Spec.Selector)
	if err != nil {
		d.problem("spec.selector", "%v", err)
		return
	}
	t := template{nameAt: "metadata.name", at: "spec.template.", meta: o.Spec.Template.ObjectMeta, spec: &o.Spec.Template.Spec}
	if sel.Empty() || !sel.Matches(labelSet(t.meta.Labels)) {
		d.problem("spec.selector", "does not select the labels of spec.template")
		return
	}
	if p := t.spec.RestartPolicy; p != "" && p != corev1.RestartPolicyAlways {
		d.problem("spec.template.spec.restartPolicy", "must be Always in a Deployment, not %s", p)
		return
	}
	t.meta.Namespace = o.Namespace
	for i := range n {
		t.name = o.Name
		if o.Name != "" {
			t.name = fmt.Sprintf("%s-%d", o.Name, i)
		}
		r.pod(d, t)
		if r.problems.any() {
			return // the same of each
		}
	}
}

func (r *reader) job(d *document, o *batchv1.Job) {
	t := template{name: o.Name, nameAt: "metadata.name", at: "spec.template.", meta: o.Spec.Template.ObjectMeta, spec: &o.Spec.Template.Spec}
	t.meta.Namespace = o.Namespace
	for name, v := range map[string]*int32{"parallelism": o.Spec.Parallelism, "completions": o.Spec.Completions} {
		if v != nil && *v != 1 {
			d.problem("spec."+name, "not supported: a Job has one pod here")
		}
	}
	limit := o.Spec.BackoffLimit
	switch t.spec.RestartPolicy {
	case corev1.RestartPolicyOnFailure:
		t.retries = 6
		if limit != nil {
			t.retries = int(*limit)
		}
		if t.retries < 0 {
			d.problem("spec.backoffLimit", "%d is negative", t.retries)
		}
		t.noRetry = t.retries == 0
	case corev1.RestartPolicyNever:
		if limit != nil && *limit != 0 {
			d.problem("spec.backoffLimit", "not supported with restartPolicy Never: a pod that failed is not replaced by another; use OnFailure")
		}
	default:
		d.problem("spec.template.spec.restartPolicy", "must be OnFailure or Never in a Job, not %q", t.spec.RestartPolicy)
	}
	r.pod(d, t)
}

// add takes a pod whose name is still free.
func (r *reader) add(d *document, p Pod) {
	if slices.ContainsFunc(r.pods, func(q Pod) bool { return q.Name == p.Name }) {
		d.problem("metadata.name", "there are two pods %s", p.Name)
	}
	if len(r.pods) == maxPods {
		d.problem("", "these are more than %d pods", maxPods)
	}
	r.pods = append(r.pods, p)
}
