package kube

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hyper-run/hyper/internal/pod"
)

// How the kubelet restarts containers.
const (
	restartDelay      = 10 * time.Second
	restartMaxDelay   = 5 * time.Minute
	restartResetAfter = 10 * time.Minute
)

// CPU shares of a cgroup, as the kubelet makes them of CPUs.
const (
	minShares = 2
	maxShares = 262144
)

// containers converts init containers, sidecars among them, and containers.
func (b *builder) containers() {
	if len(b.spec.Containers) == 0 {
		b.problem(b.base+"containers", "at least one is needed")
	}
	seen := map[string]bool{}
	weighed := false
	for _, list := range []struct {
		name string
		in   []corev1.Container
	}{{"initContainers", b.spec.InitContainers}, {"containers", b.spec.Containers}} {
		for i := range list.in {
			in, at := &list.in[i], index(b.base+list.name, i)
			if in.Name == "" {
				b.problem(at+".name", "is needed")
			} else {
				b.valid(at+".name", in.Name, validation.IsDNS1123Label(in.Name))
			}
			if seen[in.Name] {
				b.problem(at+".name", "there are two containers %s", short(in.Name))
			}
			seen[in.Name] = true
			role := pod.RoleMain
			if list.name == "initContainers" {
				role = pod.RoleInit
			}
			b.out.Containers = append(b.out.Containers, b.one(in, at, role))
			_, asked := in.Resources.Requests[corev1.ResourceCPU]
			weighed = weighed || asked
		}
	}
	if !weighed { // all are equal
		for i := range b.out.Containers {
			b.out.Containers[i].Spec.Resources.CPUShares = 0
		}
	}
}

// one converts a container.
func (b *builder) one(in *corev1.Container, at string, role pod.Role) Container {
	c := Container{Name: in.Name, Unique: b.name + "-" + in.Name, Image: in.Image}
	s := &c.Spec
	s.Network = "default"
	s.Dir = in.WorkingDir
	s.TTY, s.Stdin, s.StdinOnce = in.TTY, in.Stdin, in.StdinOnce
	if in.StdinOnce && !in.Stdin {
		b.problem(at+".stdinOnce", "needs stdin")
	}
	b.label(&c)
	b.image(&c, in, at)
	b.restart(s, in, at, role)
	b.resources(&s.Resources, &s.DiskBytes, in, at)
	b.security(&c, in, at)

	env := newEnvironment(b)
	env.read(in, at)
	b.mounts(s, env, in, at)
	p := probing{builder: b, ports: b.ports(in, at), env: env}
	p.probes(s, in, at)
	if role := s.Role; role == pod.RoleInit && (s.Probes != pod.Probes{} || in.Lifecycle != nil) {
		b.problem(at, "an init container has no probes and no lifecycle, unless it is a sidecar (restartPolicy: Always)")
	}
	env.finish(&c, at, in.Command, in.Args)
	return c
}

// label gives a container the labels that say what it is.
func (b *builder) label(c *Container) {
	if c.Spec.Labels == nil {
		c.Spec.Labels = map[string]string{}
	}
	maps.Copy(c.Spec.Labels, map[string]string{labelPod: b.name, labelNamespace: namespace(b.meta), labelContainer: c.Name})
}

// image checks the reference, and when to pull it: with the tag latest always.
func (b *builder) image(c *Container, in *corev1.Container, at string) {
	if in.Image == "" {
		b.problem(at+".image", "is needed")
		return
	}
	ref, err := reference.ParseAnyReference(in.Image)
	if err != nil {
		b.problem(at+".image", "%q: %v", short(in.Image), err)
		return
	}
	switch p := in.ImagePullPolicy; p {
	case corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
		c.Pull = PullPolicy(p)
	case "":
		c.Pull = PullIfNotPresent
		named, ok := ref.(reference.Named)
		if !ok {
			break
		}
		if t, ok := reference.TagNameOnly(named).(reference.Tagged); ok && t.Tag() == "latest" {
			if _, pinned := ref.(reference.Digested); !pinned {
				c.Pull = PullAlways
			}
		}
	default:
		b.problem(at+".imagePullPolicy", "%q is none of Always, IfNotPresent, Never", short(string(p)))
	}
}

// restart sets the role and what happens when the process ends. An init
// container is started again until it ends well, unless the policy is Never.
func (b *builder) restart(s *pod.Spec, in *corev1.Container, at string, role pod.Role) {
	s.Role = role
	policy := cmp.Or(b.spec.RestartPolicy, corev1.RestartPolicyAlways)
	if role == pod.RoleInit && policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure
	}
	if own := in.RestartPolicy; own != nil {
		policy = corev1.RestartPolicy(*own)
		if role == pod.RoleInit && *own == corev1.ContainerRestartPolicyAlways {
			s.Role = pod.RoleSidecar
		}
	}
	s.Restart = pod.RestartPolicy{Delay: restartDelay, MaxDelay: restartMaxDelay, ResetAfter: restartResetAfter}
	switch policy {
	case corev1.RestartPolicyAlways:
		s.Restart.Policy = "always"
	case corev1.RestartPolicyOnFailure:
		s.Restart.Policy, s.Restart.Max = "on-failure", b.retries
		if b.noRetry {
			s.Restart = pod.RestartPolicy{Policy: "no"}
		}
	case corev1.RestartPolicyNever:
		s.Restart = pod.RestartPolicy{Policy: "no"}
	default:
		if in.RestartPolicy != nil {
			b.problem(at+".restartPolicy", "%q is none of Always, OnFailure, Never", short(string(policy)))
		}
	}
}

// resources converts limits, and what of requests is a weight or a
// protection. A request that is not there is as large as the limit.
func (b *builder) resources(r *pod.Resources, disk *int64, in *corev1.Container, at string) {
	at += ".resources."
	for _, list := range []struct {
		name string
		r    corev1.ResourceList
	}{{"limits", in.Resources.Limits}, {"requests", in.Resources.Requests}} {
		for name, q := range list.r {
			p := join(at+list.name, string(name))
			limit := list.name == "limits"
			switch {
			case name == corev1.ResourceCPU && limit:
				r.NanoCPUs = b.milli(p, q) * 1e6
			case name == corev1.ResourceCPU:
				r.CPUShares = shares(b.milli(p, q))
			case name == corev1.ResourceMemory && limit:
				r.MemoryBytes = b.amount(p, q)
			case name == corev1.ResourceMemory:
				r.MemoryReservationBytes = b.amount(p, q)
			case name == corev1.ResourceEphemeralStorage && limit:
				*disk = b.amount(p, q)
			case name == corev1.ResourceEphemeralStorage:
				b.amount(p, q) // disks are sparse: nothing is set aside
			default:
				b.problem(p, "not supported: a container has cpu, memory and ephemeral-storage")
			}
			if most, ok := in.Resources.Limits[name]; ok && q.Cmp(most) > 0 {
				b.problem(p, "%s is more than the limit of %s", q.String(), most.String())
			}
		}
	}
	if r.CPUShares == 0 {
		r.CPUShares = shares(r.NanoCPUs / 1e6)
	}
	for i, p := range in.ResizePolicy {
		if p.RestartPolicy != corev1.NotRequired {
			b.problem(index(strings.TrimSuffix(at, "resources.")+"resizePolicy", i), "%q is not supported: a limit is changed without a restart", short(string(p.RestartPolicy)))
		}
	}
}

func shares(milli int64) uint64 { return uint64(min(max(milli*1024/1000, minShares), maxShares)) }

// ports checks a container's ports, and returns their numbers by name. All
// containers of a pod share them, so that they only inform.
func (b *builder) ports(in *corev1.Container, at string) map[string]int {
	named := map[string]int{}
	for i, p := range in.Ports {
		at := index(at+".ports", i)
		b.valid(at+".containerPort", strconv.Itoa(int(p.ContainerPort)), validation.IsValidPortNum(int(p.ContainerPort)))
		if !contains([]string{"", "TCP", "UDP", "SCTP"}, string(p.Protocol)) {
			b.problem(at+".protocol", "%q is none of TCP, UDP, SCTP", short(string(p.Protocol)))
		}
		for j, q := range in.Ports[:i] {
			if p.ContainerPort == q.ContainerPort && cmp.Or(p.Protocol, "TCP") == cmp.Or(q.Protocol, "TCP") {
				b.problem(at, "is the same as ports[%d]", j)
			}
		}
		if p.Name == "" {
			continue
		}
		b.valid(at+".name", p.Name, validation.IsValidPortName(p.Name))
		if _, twice := named[p.Name]; twice {
			b.problem(at+".name", "there are two ports %s", short(p.Name))
		}
		named[p.Name] = int(p.ContainerPort)
	}
	return named
}

func (b *builder) mounts(s *pod.Spec, env *environment, in *corev1.Container, at string) {
	seen := map[string]bool{}
	for i, m := range in.VolumeMounts {
		at := index(at+".volumeMounts", i)
		files, ok := b.volumes[m.Name]
		if !ok {
			b.problem(at+".name", "there is no volume %q in the pod", short(m.Name))
		}
		p := path.Clean(m.MountPath)
		switch {
		case !path.IsAbs(m.MountPath) || p == "/" || strings.ContainsAny(p, ":\x00\n"):
			b.problem(at+".mountPath", "%q is not an absolute path below / without a colon", short(m.MountPath))
		case seen[p]:
			b.problem(at+".mountPath", "there are two mounts on %s", short(p))
		}
		seen[p] = true
		sub := m.SubPath
		if m.SubPathExpr != "" {
			if sub != "" {
				b.problem(at+".subPathExpr", "can't be together with subPath")
			}
			sub = env.static(at+".subPathExpr", m.SubPathExpr)
		}
		if sub != "" && (path.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") || strings.ContainsAny(sub, "\x00\n")) {
			b.problem(at+".subPath", "%q is not a path in the volume", short(sub))
		}
		if sub != "" {
			sub = path.Clean(sub)
		}
		if sub == "." {
			sub = ""
		}
		// What is made from the file can't be written, as in Kubernetes.
		s.Mounts = append(s.Mounts, pod.Mount{Volume: m.Name, SubPath: sub, Path: p, ReadOnly: m.ReadOnly || files})
	}
}

// security sets who the process is and what it may. The container's own
// settings go before the pod's.
func (b *builder) security(c *Container, in *corev1.Container, at string) {
	at += ".securityContext."
	sc, psc := in.SecurityContext, b.spec.SecurityContext
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	if psc == nil {
		psc = &corev1.PodSecurityContext{}
	}
	s := &c.Spec
	if u := cmp.Or(sc.RunAsUser, psc.RunAsUser); u != nil {
		s.User = strconv.FormatInt(b.id(at+"runAsUser", u), 10)
	}
	if c.group = cmp.Or(sc.RunAsGroup, psc.RunAsGroup); c.group != nil {
		b.id(at+"runAsGroup", c.group)
	}
	c.nonRoot = isTrue(cmp.Or(sc.RunAsNonRoot, psc.RunAsNonRoot))
	for _, g := range psc.SupplementalGroups {
		s.Groups = append(s.Groups, strconv.FormatInt(g, 10))
	}
	if b.group != 0 {
		s.Groups = append(s.Groups, strconv.Itoa(int(b.group)))
	}
	s.Privileged, s.ReadOnly = isTrue(sc.Privileged), isTrue(sc.ReadOnlyRootFilesystem)
	if caps := sc.Capabilities; caps != nil {
		s.CapAdd, s.CapDrop = texts(caps.Add), texts(caps.Drop)
	}
	if e := sc.AllowPrivilegeEscalation; e != nil && !*e {
		s.NoNewPrivs = true
		if s.Privileged || contains(s.CapAdd, "SYS_ADMIN") || contains(s.CapAdd, "CAP_SYS_ADMIN") {
			b.problem(at+"allowPrivilegeEscalation", "can't be false of a container that is privileged or has SYS_ADMIN")
		}
	}
	if p := sc.ProcMount; p != nil {
		switch *p {
		case corev1.DefaultProcMount:
		case corev1.UnmaskedProcMount:
			s.MaskedPaths, s.ReadonlyPaths = []string{}, []string{}
		default:
			b.problem(at+"procMount", "%q is none of Default, Unmasked", short(string(*p)))
		}
	}
	if p := cmp.Or(sc.SeccompProfile, psc.SeccompProfile); p != nil {
		switch p.Type {
		case corev1.SeccompProfileTypeRuntimeDefault:
		case corev1.SeccompProfileTypeUnconfined:
			s.Seccomp = "unconfined"
		default:
			b.problem(at+"seccompProfile.type", "%q is not supported: RuntimeDefault and Unconfined are", short(string(p.Type)))
		}
	}
}

func isTrue(p *bool) bool { return p != nil && *p }

func texts[T ~string](list []T) []string {
	var out []string
	for _, s := range list {
		out = append(out, string(s))
	}
	return out
}

func contains(list []string, s string) bool { return slices.Contains(list, s) }

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
