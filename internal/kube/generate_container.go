package kube

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/hyper-run/hyper/internal/pod"
)

// kubePolicies are Kubernetes' names of restart policies, as close as they come.
var kubePolicies = map[string]corev1.RestartPolicy{
	"no": corev1.RestartPolicyNever, "on-failure": corev1.RestartPolicyOnFailure,
	"always": corev1.RestartPolicyAlways, "unless-stopped": corev1.RestartPolicyAlways,
}

// restartPolicy is that of the first main container.
func (g *generator) restartPolicy() corev1.RestartPolicy {
	for _, c := range g.containers {
		if c.spec.Role == pod.RoleMain {
			return kubePolicies[c.spec.Restart.Policy]
		}
	}
	return corev1.RestartPolicyAlways
}

// writeContainer writes a container in Kubernetes' words, as far as they go.
func (g *generator) writeContainer(c generated, in *corev1.PodSpec) corev1.Container {
	s := c.spec
	out := corev1.Container{
		Name: c.name, Image: s.Image, ImagePullPolicy: corev1.PullIfNotPresent, WorkingDir: s.Dir,
		TTY: s.TTY, Stdin: s.Stdin, StdinOnce: s.StdinOnce && s.Stdin, SecurityContext: writeSecurity(s),
	}
	escape := escapeRefs
	if s.Expand {
		escape = func(text string) string { return text }
	}
	for _, a := range s.Args {
		out.Command = append(out.Command, escape(a))
	}
	for _, f := range s.EnvFields {
		out.Env = append(out.Env, corev1.EnvVar{Name: f.Name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: f.Field}}})
	}
	for _, e := range s.Env {
		name, value, _ := strings.Cut(e, "=")
		out.Env = append(out.Env, corev1.EnvVar{Name: name, Value: escape(value)})
	}
	out.Resources.Limits = quantities(s.Resources.NanoCPUs, s.Resources.MemoryBytes, s.DiskBytes)
	out.Resources.Requests = quantities(0, s.Resources.MemoryReservationBytes, 0)
	writeShares(&out.Resources, s.Resources)
	for _, m := range s.Mounts {
		out.VolumeMounts = append(out.VolumeMounts, corev1.VolumeMount{Name: m.Volume, MountPath: m.Path, SubPath: m.SubPath, ReadOnly: m.ReadOnly})
	}
	policy := kubePolicies[s.Restart.Policy]
	usual := in.RestartPolicy
	if s.Role != pod.RoleMain && usual == corev1.RestartPolicyAlways {
		usual = corev1.RestartPolicyOnFailure
	}
	if own := corev1.ContainerRestartPolicy(policy); s.Role == pod.RoleSidecar {
		out.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	} else if policy != usual && (s.Role == pod.RoleMain || policy != corev1.RestartPolicyAlways) {
		out.RestartPolicy = &own
	}
	if s.Role != pod.RoleInit {
		writeProbes(&out, s, in)
	}
	return out
}

// writeShares writes a weight as the request that has it, if there is one.
func writeShares(out *corev1.ResourceRequirements, r pod.Resources) {
	milli := int64(r.CPUShares*1000+1023) / 1024
	if r.CPUShares < minShares || r.CPUShares > maxShares || r.NanoCPUs != 0 && milli > r.NanoCPUs/1e6 {
		return
	}
	if out.Requests == nil {
		out.Requests = corev1.ResourceList{}
	}
	out.Requests[corev1.ResourceCPU] = *resource.NewMilliQuantity(milli, resource.DecimalSI)
}

// escapeRefs escapes only where something would be replaced.
func escapeRefs(text string) string {
	if strings.Contains(text, "$(") || strings.Contains(text, "$$") {
		return pod.EscapeRefs(text)
	}
	return text
}

var numericUser = regexp.MustCompile(`^(\d{1,9})(?::(\d{1,9}))?$`)

func writeSecurity(s pod.Spec) *corev1.SecurityContext {
	var out corev1.SecurityContext
	empty := out
	if m := numericUser.FindStringSubmatch(s.User); m != nil {
		user, _ := strconv.ParseInt(m[1], 10, 64)
		out.RunAsUser = &user
		if m[2] != "" {
			group, _ := strconv.ParseInt(m[2], 10, 64)
			out.RunAsGroup = &group
		}
	}
	if s.Privileged {
		out.Privileged = new(true)
	}
	if s.ReadOnly {
		out.ReadOnlyRootFilesystem = new(true)
	}
	if sysAdmin := contains(s.CapAdd, "SYS_ADMIN") || contains(s.CapAdd, "CAP_SYS_ADMIN"); s.NoNewPrivs && !s.Privileged && !sysAdmin {
		out.AllowPrivilegeEscalation = new(false)
	}
	if s.Seccomp == "unconfined" {
		out.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}
	}
	if s.MaskedPaths != nil && s.ReadonlyPaths != nil && len(s.MaskedPaths)+len(s.ReadonlyPaths) == 0 {
		out.ProcMount = new(corev1.UnmaskedProcMount)
	}
	if len(s.CapAdd)+len(s.CapDrop) > 0 {
		out.Capabilities = &corev1.Capabilities{}
		for _, c := range s.CapAdd {
			out.Capabilities.Add = append(out.Capabilities.Add, corev1.Capability(c))
		}
		for _, c := range s.CapDrop {
			out.Capabilities.Drop = append(out.Capabilities.Drop, corev1.Capability(c))
		}
	}
	if out == empty {
		return nil
	}
	return &out
}

// writeProbes writes probes and hooks.
func writeProbes(out *corev1.Container, s pod.Spec, in *corev1.PodSpec) {
	out.StartupProbe, out.LivenessProbe, out.ReadinessProbe = writeProbe(s.Probes.Startup), writeProbe(s.Probes.Liveness), writeProbe(s.Probes.Readiness)
	if s.Hooks.PostStart == nil && s.Hooks.PreStop == nil && !strings.HasPrefix(s.StopSignal, "SIG") {
		return
	}
	out.Lifecycle = &corev1.Lifecycle{PostStart: writeHook(s.Hooks.PostStart), PreStop: writeHook(s.Hooks.PreStop)}
	if strings.HasPrefix(s.StopSignal, "SIG") {
		out.Lifecycle.StopSignal = new(corev1.Signal(s.StopSignal))
		in.OS = &corev1.PodOS{Name: corev1.Linux} // which Kubernetes wants to know with it
	}
}

func writeProbe(p *pod.Probe) *corev1.Probe {
	if p == nil {
		return nil
	}
	out := &corev1.Probe{
		InitialDelaySeconds: seconds(p.InitialDelay), PeriodSeconds: seconds(p.Period), TimeoutSeconds: seconds(p.Timeout),
		SuccessThreshold: int32(p.SuccessThreshold), FailureThreshold: int32(p.FailureThreshold),
	}
	if p.Grace != nil {
		out.TerminationGracePeriodSeconds = new(int64(*p.Grace))
	}
	for _, a := range p.Exec {
		if out.Exec == nil {
			out.Exec = &corev1.ExecAction{}
		}
		out.Exec.Command = append(out.Exec.Command, escapeRefs(a))
	}
	out.HTTPGet, out.TCPSocket = writeHTTP(p.HTTP), writeTCP(p.TCP)
	if g := p.GRPC; g != nil {
		out.GRPC = &corev1.GRPCAction{Port: int32(g.Port), Service: &g.Service}
	}
	return out
}

func seconds(d time.Duration) int32 { return int32(d / time.Second) }

func writeHook(h *pod.Handler) *corev1.LifecycleHandler {
	if h == nil {
		return nil
	}
	out := &corev1.LifecycleHandler{HTTPGet: writeHTTP(h.HTTP), TCPSocket: writeTCP(h.TCP)}
	switch {
	case h.Exec != nil:
		out.Exec = &corev1.ExecAction{Command: h.Exec}
	case h.HTTP == nil && h.TCP == nil:
		out.Sleep = &corev1.SleepAction{Seconds: int64(h.Sleep / time.Second)}
	}
	return out
}

func writeHTTP(h *pod.HTTPGet) *corev1.HTTPGetAction {
	if h == nil {
		return nil
	}
	out := &corev1.HTTPGetAction{Host: h.Host, Port: intstr.FromInt(h.Port), Path: h.Path}
	if h.HTTPS {
		out.Scheme = corev1.URISchemeHTTPS
	}
	for _, f := range h.Headers {
		out.HTTPHeaders = append(out.HTTPHeaders, corev1.HTTPHeader{Name: f[0], Value: f[1]})
	}
	return out
}

func writeTCP(t *pod.TCPSocket) *corev1.TCPSocketAction {
	if t == nil {
		return nil
	}
	return &corev1.TCPSocketAction{Host: t.Host, Port: intstr.FromInt(t.Port)}
}
