package kube

import (
	"cmp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hyper-run/hyper/internal/pod"
)

// probing converts one container's probes and hooks.
type probing struct {
	*builder
	ports map[string]int
	env   *environment
}

func (p *probing) probes(s *pod.Spec, in *corev1.Container, at string) {
	s.Probes.Startup = p.probe(in.StartupProbe, at+".startupProbe")
	s.Probes.Liveness = p.probe(in.LivenessProbe, at+".livenessProbe")
	s.Probes.Readiness = p.probe(in.ReadinessProbe, at+".readinessProbe")
	for name, probe := range map[string]*pod.Probe{"startupProbe": s.Probes.Startup, "livenessProbe": s.Probes.Liveness} {
		if probe != nil && probe.SuccessThreshold != 1 {
			p.problem(at+"."+name+".successThreshold", "must be 1")
		}
	}
	if r := s.Probes.Readiness; r != nil && r.Grace != nil {
		p.problem(at+".readinessProbe.terminationGracePeriodSeconds", "a readiness probe stops nothing")
	}
	l := in.Lifecycle
	if l == nil {
		return
	}
	s.Hooks.PostStart = p.hook(l.PostStart, at+".lifecycle.postStart")
	s.Hooks.PreStop = p.hook(l.PreStop, at+".lifecycle.preStop")
	if l.StopSignal != nil {
		s.StopSignal = string(*l.StopSignal)
		if !strings.HasPrefix(s.StopSignal, "SIG") || len(s.StopSignal) > 16 {
			p.problem(at+".lifecycle.stopSignal", "%q is not a signal's name", short(s.StopSignal))
		}
	}
}

func (p *probing) probe(in *corev1.Probe, at string) *pod.Probe {
	if in == nil {
		return nil
	}
	out := &pod.Probe{
		Handler:          p.handler(handlers{in.Exec, in.HTTPGet, in.TCPSocket, in.GRPC, nil}, at, true),
		InitialDelay:     p.duration(at+".initialDelaySeconds", in.InitialDelaySeconds, 0),
		Period:           p.duration(at+".periodSeconds", in.PeriodSeconds, 10),
		Timeout:          p.duration(at+".timeoutSeconds", in.TimeoutSeconds, 1),
		SuccessThreshold: int(cmp.Or(in.SuccessThreshold, 1)),
		FailureThreshold: int(cmp.Or(in.FailureThreshold, 3)),
	}
	if in.SuccessThreshold < 0 || in.FailureThreshold < 0 {
		p.problem(at, "thresholds are not negative")
	}
	if g := in.TerminationGracePeriodSeconds; g != nil {
		grace := p.seconds(at+".terminationGracePeriodSeconds", *g)
		if grace == 0 {
			p.problem(at+".terminationGracePeriodSeconds", "must be above 0")
		}
		out.Grace = &grace
	}
	return out
}

// duration is a number of seconds; 0 means the default, as for Kubernetes.
func (p *probing) duration(at string, n, otherwise int32) time.Duration {
	return time.Duration(p.seconds(at, int64(cmp.Or(n, otherwise)))) * time.Second
}

func (p *probing) hook(in *corev1.LifecycleHandler, at string) *pod.Handler {
	if in == nil {
		return nil
	}
	h := p.handler(handlers{in.Exec, in.HTTPGet, in.TCPSocket, nil, in.Sleep}, at, false)
	return &h
}

// handlers are what a probe or hook may do; one is set.
type handlers struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

// handler converts what a probe or hook does. The variables in a probe's
// command are replaced, those in a hook's are not: so does the kubelet.
func (p *probing) handler(in handlers, at string, probe bool) pod.Handler {
	var h pod.Handler
	n := 0
	if in.exec != nil {
		n++
		h.Exec = p.command(in.exec.Command, at+".exec.command", probe)
	}
	if in.http != nil {
		n++
		h.HTTP = p.http(in.http, at+".httpGet")
	}
	if in.tcp != nil {
		n++
		h.TCP = &pod.TCPSocket{Host: in.tcp.Host, Port: p.port(in.tcp.Port, at+".tcpSocket.port")}
		p.host(in.tcp.Host, at+".tcpSocket.host")
	}
	if in.grpc != nil {
		n++
		h.GRPC = &pod.GRPCCheck{Port: p.port(intstr.FromInt32(in.grpc.Port), at+".grpc.port")}
		if in.grpc.Service != nil {
			h.GRPC.Service = *in.grpc.Service
		}
	}
	if in.sleep != nil {
		n++
		h.Sleep = time.Duration(p.seconds(at+".sleep.seconds", in.sleep.Seconds)) * time.Second
	}
	if n != 1 {
		p.problem(at, "one thing to do is needed, not %d", n)
	}
	return h
}

func (p *probing) command(in []string, at string, probe bool) []string {
	if len(in) == 0 {
		p.problem(at, "is needed")
	}
	out := make([]string, 0, len(in))
	for i, a := range in {
		if probe {
			a = p.env.static(index(at, i), a)
		} else if strings.ContainsRune(a, 0) {
			p.problem(index(at, i), "has a zero byte in it")
		}
		out = append(out, a)
	}
	return out
}

func (p *probing) http(in *corev1.HTTPGetAction, at string) *pod.HTTPGet {
	h := &pod.HTTPGet{Host: in.Host, Port: p.port(in.Port, at+".port"), Path: cmp.Or(in.Path, "/")}
	p.host(in.Host, at+".host")
	if strings.ContainsAny(h.Path, " \r\n\x00") {
		p.problem(at+".path", "%q is not a path", short(h.Path))
	}
	if !strings.HasPrefix(h.Path, "/") {
		h.Path = "/" + h.Path
	}
	switch in.Scheme {
	case "", corev1.URISchemeHTTP:
	case corev1.URISchemeHTTPS:
		h.HTTPS = true
	default:
		p.problem(at+".scheme", "%q is none of HTTP, HTTPS", short(string(in.Scheme)))
	}
	for i, f := range in.HTTPHeaders {
		p.valid(index(at+".httpHeaders", i)+".name", f.Name, validation.IsHTTPHeaderName(f.Name))
		if strings.ContainsAny(f.Value, "\r\n\x00") {
			p.problem(index(at+".httpHeaders", i)+".value", "has more than one line")
		}
		h.Headers = append(h.Headers, [2]string{f.Name, f.Value})
	}
	return h
}

func (p *probing) host(host, at string) {
	if strings.ContainsAny(host, " /\r\n\x00") || len(host) > 253 {
		p.problem(at, "%q is not a host", short(host))
	}
}

// port is a number, or that of the container's port with a name.
func (p *probing) port(in intstr.IntOrString, at string) int {
	if in.Type == intstr.String {
		n, ok := p.ports[in.StrVal]
		if !ok {
			p.problem(at, "the container has no port %q", short(in.StrVal))
		}
		return n
	}
	p.valid(at, in.String(), validation.IsValidPortNum(int(in.IntVal)))
	return int(in.IntVal)
}
