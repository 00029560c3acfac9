package kube

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Annotations of a pod that are orders to Hyper, not notes.
const (
	annotationPrefix    = "run.hyper."
	annotationKernel    = annotationPrefix + "kernel"     // path of a guest kernel
	annotationPod       = annotationPrefix + "pod"        // JSON: fields of pod.PodSpec that Kubernetes lacks
	annotationContainer = annotationPrefix + "container/" // + NAME; JSON: fields of pod.Spec likewise
)

const maxDNSServers = 3 // of resolv.conf(5)

// A template is what pods are made of.
type template struct {
	name   string
	nameAt string // path of the name
	at     string // before the paths in it
	meta   metav1.ObjectMeta
	spec   *corev1.PodSpec
	// Of a Job: how often a container is started again; 0: as restartPolicy says.
	retries int
	noRetry bool
}

// A builder makes one pod.
type builder struct {
	*document
	template
	base    string          // path of the spec, with a dot
	volumes map[string]bool // by name: it is made of the file's own data, and read-only
	group   uint32          // fsGroup
	out     Pod
}

func (r *reader) pod(d *document, t template) {
	b := &builder{document: d, template: t, base: t.at + "spec.", volumes: map[string]bool{}, out: Pod{Name: t.name}}
	b.checkName(t.nameAt, t.name)
	b.checkMeta()
	s := &b.out.Spec
	s.Network = "default"
	s.Labels = t.meta.Labels
	for k, v := range t.meta.Annotations {
		if strings.HasPrefix(k, annotationPrefix) {
			continue
		}
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[k] = v
	}
	b.names()
	b.dns()
	b.life()
	b.podSecurity()
	b.podResources()
	b.podVolumes()
	b.containers()
	b.orders()
	if t.spec.OS != nil && t.spec.OS.Name != corev1.Linux {
		b.problem(b.base+"os.name", "%s is not supported: guests run Linux", short(string(t.spec.OS.Name)))
	}
	if u := t.spec.HostUsers; u != nil && !*u {
		b.problem(b.base+"hostUsers", "not supported: users are not mapped, the virtual machine is the boundary")
	}
	r.add(d, b.out)
}

// checkName checks the name of an object.
func (d *document) checkName(path, name string) {
	if name == "" {
		d.problem(path, "is needed")
		return
	}
	d.valid(path, name, validation.IsDNS1123Subdomain(name))
}

// valid tells what Kubernetes' validation says of a value.
func (d *document) valid(path, value string, wrong []string) {
	for _, w := range wrong {
		d.problem(path, "%q: %s", short(value), w)
	}
}

func (b *builder) checkMeta() {
	at := b.at + "metadata."
	for k, v := range b.meta.Labels {
		b.valid(join(at+"labels", k), k, validation.IsQualifiedName(k))
		b.valid(join(at+"labels", k), v, validation.IsValidLabelValue(v))
	}
	for k := range b.meta.Annotations {
		b.valid(join(at+"annotations", k), k, validation.IsQualifiedName(strings.ToLower(k)))
	}
	if b.meta.Namespace != "" {
		b.valid(at+"namespace", b.meta.Namespace, validation.IsDNS1123Label(b.meta.Namespace))
	}
}

// names sets the pod's hostname, domain and hosts file.
func (b *builder) names() {
	in, s := b.spec, &b.out.Spec
	switch {
	case in.HostnameOverride != nil:
		s.Hostname = *in.HostnameOverride
		b.valid(b.base+"hostnameOverride", s.Hostname, validation.IsDNS1123Subdomain(s.Hostname))
		if len(s.Hostname) > 64 {
			b.problem(b.base+"hostnameOverride", "is longer than 64 characters")
		}
	case in.Hostname != "":
		s.Hostname = in.Hostname
		b.valid(b.base+"hostname", in.Hostname, validation.IsDNS1123Label(in.Hostname))
	case len(b.name) > 63:
		s.Hostname = strings.TrimRight(b.name[:63], "-.")
	}
	if in.Subdomain != "" {
		s.Domainname = in.Subdomain
		b.valid(b.base+"subdomain", in.Subdomain, validation.IsDNS1123Label(in.Subdomain))
	}
	for i, a := range in.HostAliases {
		at := index(b.base+"hostAliases", i)
		addr, err := netip.ParseAddr(a.IP)
		if err != nil || addr.Zone() != "" {
			b.problem(at+".ip", "%q is not an IP address", short(a.IP))
		}
		for j, name := range a.Hostnames {
			b.valid(index(at+".hostnames", j), name, validation.IsDNS1123Subdomain(name))
			s.ExtraHosts = append(s.ExtraHosts, name+":"+a.IP)
		}
	}
}

// dns sets what is in resolv.conf. The network's name server knows the
// host's names too, so that all policies but None are the same.
func (b *builder) dns() {
	in, s := b.spec, &b.out.Spec
	c := in.DNSConfig
	if c == nil {
		c = &corev1.PodDNSConfig{}
	}
	at := b.base + "dnsConfig."
	switch in.DNSPolicy {
	case "", corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault:
		if len(c.Nameservers) > 0 {
			b.problem(at+"nameservers", "not supported with dnsPolicy %s: name servers can't be added to the network's, only with None take their place", in.DNSPolicy)
		}
	case corev1.DNSNone:
		if len(c.Nameservers) == 0 {
			b.problem(b.base+"dnsPolicy", "None needs dnsConfig.nameservers")
		}
	default:
		b.problem(b.base+"dnsPolicy", "%q is none of ClusterFirst, ClusterFirstWithHostNet, Default, None", short(string(in.DNSPolicy)))
	}
	if len(c.Nameservers) > maxDNSServers {
		b.problem(at+"nameservers", "are more than %d", maxDNSServers)
	}
	for i, ns := range c.Nameservers {
		if _, err := netip.ParseAddr(ns); err != nil {
			b.problem(index(at+"nameservers", i), "%q is not an IP address", short(ns))
		}
	}
	for i, name := range c.Searches {
		if name != "." {
			b.valid(index(at+"searches", i), name, validation.IsDNS1123Subdomain(strings.ReplaceAll(strings.TrimSuffix(name, "."), "_", "-")))
		}
	}
	s.DNS, s.DNSSearch = c.Nameservers, c.Searches
	for i, o := range c.Options {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		if o.Name == "" || strings.ContainsAny(text, " \t\r\n") {
			b.problem(index(at+"options", i), "%q is not an option of resolv.conf", short(text))
		}
		s.DNSOptions = append(s.DNSOptions, text)
	}
}

// life sets how the pod stops and what its containers share.
func (b *builder) life() {
	in, s := b.spec, &b.out.Spec
	grace := 30
	if g := in.TerminationGracePeriodSeconds; g != nil {
		grace = b.seconds(b.base+"terminationGracePeriodSeconds", *g)
	}
	s.StopTimeout = &grace
	s.SharePID = in.ShareProcessNamespace != nil && *in.ShareProcessNamespace
	switch in.RestartPolicy {
	case "", corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever:
	default:
		b.problem(b.base+"restartPolicy", "%q is none of Always, OnFailure, Never", short(string(in.RestartPolicy)))
	}
}

// seconds checks a number of seconds.
func (b *builder) seconds(path string, n int64) int {
	const most = 10 * 365 * 24 * 3600
	if n < 0 || n > most {
		b.problem(path, "%d is not between 0 and %d", n, most)
		return 0
	}
	return int(n)
}

var sysctlName = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)+$`)

func (b *builder) podSecurity() {
	sc := b.spec.SecurityContext
	if sc == nil {
		return
	}
	at := b.base + "securityContext."
	b.group = uint32(b.id(at+"fsGroup", sc.FSGroup))
	for i, g := range sc.SupplementalGroups {
		b.id(index(at+"supplementalGroups", i), &g)
	}
	for i, c := range sc.Sysctls {
		path := index(at+"sysctls", i) + ".name"
		name := c.Name
		if !strings.Contains(name, ".") {
			name = strings.ReplaceAll(name, "/", ".")
		}
		if len(name) > 253 || !sysctlName.MatchString(name) || strings.Contains(name, "/") {
			b.problem(path, "%q is not the name of a sysctl", short(c.Name))
		}
		if _, twice := b.out.Spec.Sysctls[name]; twice {
			b.problem(path, "%s is given twice", name)
		}
		if b.out.Spec.Sysctls == nil {
			b.out.Spec.Sysctls = map[string]string{}
		}
		b.out.Spec.Sysctls[name] = c.Value
	}
}

// id checks a user or group, nil being 0.
func (b *builder) id(path string, id *int64) int64 {
	switch {
	case id == nil:
		return 0
	case *id < 0 || *id > 1<<31-1:
		b.problem(path, "%d is not between 0 and %d", *id, 1<<31-1)
		return 0
	}
	return *id
}

func (b *builder) podResources() {
	in := b.spec.Resources
	if in == nil {
		return
	}
	for _, list := range []struct {
		name string
		r    corev1.ResourceList
	}{{"limits", in.Limits}, {"requests", in.Requests}} {
		for name, q := range list.r {
			at := join(b.base+"resources."+list.name, string(name))
			switch {
			case name == corev1.ResourceCPU && list.name == "limits":
				b.out.Spec.Resources.NanoCPUs = b.milli(at, q) * 1e6
			case name == corev1.ResourceMemory && list.name == "limits":
				b.out.Spec.Resources.MemoryBytes = b.amount(at, q)
			case name == corev1.ResourceCPU, name == corev1.ResourceMemory:
				b.warn(at, "has no effect: a pod gets its limits, or what its containers need")
			default:
				b.problem(at, "not supported: a pod has cpu and memory")
			}
		}
	}
}

// amount is a quantity that is an amount: whole and not negative.
func (b *builder) amount(path string, q resource.Quantity) int64 {
	const most = 1 << 60
	if q.Sign() < 0 || q.CmpInt64(most) > 0 {
		b.problem(path, "%s is not between 0 and %d", q.String(), int64(most))
		return 0
	}
	return q.Value()
}

// milli is a quantity of CPUs in thousandths.
func (b *builder) milli(path string, q resource.Quantity) int64 {
	const most = 1 << 20
	if q.Sign() < 0 || q.CmpInt64(most) > 0 {
		b.problem(path, "%s is not between 0 and %d", q.String(), most)
		return 0
	}
	return q.MilliValue()
}

// orders applies what annotations order of Hyper.
func (b *builder) orders() {
	for key, text := range b.meta.Annotations {
		at := join(b.at+"metadata.annotations", key)
		name, isContainer := strings.CutPrefix(key, annotationContainer)
		switch {
		case key == annotationKernel:
			b.out.Spec.Kernel = text
		case key == annotationPod:
			b.patch(at, text, reflect.ValueOf(&b.out.Spec).Elem(), podPatch)
		case isContainer:
			c := b.container(name)
			if c == nil {
				b.problem(at, "there is no container %s", short(name))
				continue
			}
			b.patch(at, text, reflect.ValueOf(&c.Spec).Elem(), containerPatch)
			b.label(c)
		case strings.HasPrefix(key, annotationPrefix):
			b.problem(at, "unknown: there are %s, %s and %sNAME", annotationKernel, annotationPod, annotationContainer)
		}
	}
}

func (b *builder) container(name string) *Container {
	for i := range b.out.Containers {
		if b.out.Containers[i].Name == name {
			return &b.out.Containers[i]
		}
	}
	return nil
}

// What annotations may set, by names in JSON: what is Hyper's, or finer there
// than in Kubernetes. Generate uses them for what it can't say otherwise.
var (
	podPatch       = strings.Fields("labels annotations hostname domainname extraHosts dns dnsSearch dnsOptions network sysctls shmBytes resources kernelArgs stopTimeout autoRemove persist")
	containerPatch = strings.Fields(`user groups labels tty stdin stdinOnce init stopSignal stopTimeout autoRemove readOnly tmpfs diskBytes
		privileged capAdd capDrop noNewPrivs seccomp maskedPaths readonlyPaths ulimits oomScoreAdj resources log pidMode ipcMode
		extraHosts dns dnsSearch dnsOptions restart probes hooks`)
)

// patch replaces fields of a struct by those of a JSON object.
func (b *builder) patch(path, text string, v reflect.Value, may []string) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		b.problem(path, "not a JSON object: %v", err)
		return
	}
	fields := fieldsOf(v.Type())
	for name, value := range m {
		i, ok := fields[name]
		if !ok || !contains(may, name) {
			b.problem(path, "unknown field %s; there are %s", short(name), strings.Join(may, ", "))
			continue
		}
		f := v.FieldByIndex(i)
		f.SetZero()
		dec := json.NewDecoder(strings.NewReader(string(value)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(f.Addr().Interface()); err != nil {
			b.problem(path, "%s: %v", name, err)
		}
	}
}

func labelSet(m map[string]string) labels.Set { return labels.Set(m) }
