package rest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/pod"
)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// query reads the parameters of a request, of which only those known may be given.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid("parse query: %v", err)
	}
	for name := range q {
		if !slices.Contains(known, name) {
			return nil, invalid("unknown parameter %q", name)
		}
	}
	return q, nil
}

func flag(q url.Values, name string, unset bool) (bool, error) {
	if q.Get(name) == "" {
		return unset, nil
	}
	on, err := strconv.ParseBool(q.Get(name))
	if err != nil {
		return false, invalid("parameter %s: %q is not true or false", name, q.Get(name))
	}
	return on, nil
}

// timeout reads the parameter t, seconds; nil when it is not given.
func timeout(r *http.Request) (*int, error) {
	q, err := query(r, "t")
	if err != nil || q.Get("t") == "" {
		return nil, err
	}
	n, err := strconv.Atoi(q.Get("t"))
	if err != nil {
		return nil, invalid("parameter t: %q is not a number of seconds", q.Get("t"))
	}
	return &n, nil
}

func (s server) listPods(r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	return podsOf(s.Pods.ListPods()), nil
}

func (s server) getPod(r *http.Request) (any, error) { return s.onePod(r.PathValue("id")) }

func (s server) onePod(ref string) (any, error) {
	p, err := s.Pods.GetPod(ref)
	if err != nil {
		return nil, err
	}
	return podOf(p), nil
}

func (s server) createPod(r *http.Request) (any, error) {
	var req api.PodCreate
	if err := decode(r, "pod", &req); err != nil {
		return nil, err
	}
	spec, err := specOf(req.Spec)
	if err != nil {
		return nil, err
	}
	id, err := s.Pods.CreatePod(r.Context(), pod.PodOptions{Name: req.Name, Spec: spec})
	if err != nil {
		return nil, err
	}
	return s.onePod(id)
}

// specOf maps what an API's user says of a pod to what pod knows.
func specOf(s api.PodSpec) (pod.PodSpec, error) {
	switch s.Network {
	case "", "bridge":
		s.Network = "default"
	case "default", "none":
	default:
		return pod.PodSpec{}, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("network %q is not supported yet: only the networks bridge and none are there", s.Network))
	}
	for _, h := range s.ExtraHosts {
		name, ip, ok := strings.Cut(h, ":")
		if _, err := netip.ParseAddr(ip); !ok || name == "" || err != nil {
			return pod.PodSpec{}, invalid("extraHosts: %q is not NAME:ADDRESS", h)
		}
	}
	for _, ns := range s.DNS {
		if _, err := netip.ParseAddr(ns); err != nil {
			return pod.PodSpec{}, invalid("dns: %q is not an address", ns)
		}
	}
	return pod.PodSpec{
		Labels: s.Labels, Annotations: s.Annotations, Hostname: s.Hostname, Domainname: s.Domainname, ExtraHosts: s.ExtraHosts,
		DNS: s.DNS, DNSSearch: s.DNSSearch, DNSOptions: s.DNSOptions, Network: s.Network, Sysctls: s.Sysctls, SharePID: s.SharePID,
		ShmBytes: s.ShmBytes, Resources: pod.PodResources{MemoryBytes: s.MemoryBytes, NanoCPUs: s.NanoCPUs}, Kernel: s.Kernel,
		KernelArgs: s.KernelArgs, StopTimeout: s.StopTimeout, AutoRemove: s.AutoRemove, Persist: s.Persist,
	}, nil
}

// patience bounds a request by its timeout, in seconds, if it has one.
func patience(r *http.Request, q url.Values) (context.Context, context.CancelFunc, error) {
	text := q.Get("timeout")
	if text == "" {
		return r.Context(), func() {}, nil
	}
	const most = 24 * 60 * 60
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 1 || seconds > most {
		return nil, nil, invalid("timeout: %q is not a number of seconds from 1 to %d", text, most)
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(seconds)*time.Second)
	return ctx, cancel, nil
}

func (s server) playPods(r *http.Request) (any, error) {
	q, err := query(r, "start", "replace", "wait", "timeout", "file")
	if err != nil {
		return nil, err
	}
	start, err1 := flag(q, "start", true)
	replace, err2 := flag(q, "replace", false)
	wait, err3 := flag(q, "wait", false)
	if err := cmp.Or(err1, err2, err3); err != nil {
		return nil, err
	}
	if wait && !start {
		return nil, invalid("conflicting options: start=false and wait=true")
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	ctx, cancel, err := patience(r, q)
	if err != nil {
		return nil, err
	}
	defer cancel()
	pods, warnings, err := s.Play(ctx, data, api.PlayOptions{File: q.Get("file"), Create: !start, Replace: replace, Wait: wait})
	if err != nil {
		return nil, err
	}
	return api.Played{Pods: podsOf(pods), Warnings: warnings}, nil
}

func (s server) removePod(r *http.Request) (any, error) {
	q, err := query(r, "force")
	if err != nil {
		return nil, err
	}
	force, err := flag(q, "force", false)
	if err != nil {
		return nil, err
	}
	return nil, s.Pods.RemovePod(r.Context(), r.PathValue("id"), force)
}

func (s server) startPod(r *http.Request) (any, error) {
	q, err := query(r, "wait", "timeout")
	if err != nil {
		return nil, err
	}
	wait, err := flag(q, "wait", false)
	if err != nil {
		return nil, err
	}
	ctx, cancel, err := patience(r, q)
	if err != nil {
		return nil, err
	}
	defer cancel()
	return nil, s.Pods.StartPod(ctx, r.PathValue("id"), wait)
}

func (s server) stopPod(r *http.Request) (any, error) {
	t, err := timeout(r)
	if err != nil {
		return nil, err
	}
	return nil, s.Pods.StopPod(r.Context(), r.PathValue("id"), t)
}

func (s server) restartPod(r *http.Request) (any, error) {
	t, err := timeout(r)
	if err != nil {
		return nil, err
	}
	return nil, s.Pods.RestartPod(r.Context(), r.PathValue("id"), t)
}

func (s server) killPod(r *http.Request) (any, error) {
	q, err := query(r, "signal")
	if err != nil {
		return nil, err
	}
	return nil, s.Pods.KillPod(r.Context(), r.PathValue("id"), q.Get("signal"))
}

func (s server) pausePod(r *http.Request) (any, error) {
	return nil, s.Pods.PausePod(r.Context(), r.PathValue("id"))
}

func (s server) unpausePod(r *http.Request) (any, error) {
	return nil, s.Pods.ResumePod(r.Context(), r.PathValue("id"))
}

func (s server) updatePod(r *http.Request) (any, error) {
	var req api.PodUpdate
	if err := decode(r, "change of a pod", &req); err != nil {
		return nil, err
	}
	p, err := s.Pods.GetPod(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	res := p.Spec.Resources
	if req.MemoryBytes != 0 {
		res.MemoryBytes = req.MemoryBytes
	}
	if req.NanoCPUs != 0 {
		res.NanoCPUs = req.NanoCPUs
	}
	return nil, s.Pods.UpdatePod(r.Context(), p.ID, res)
}

func (s server) podStats(r *http.Request) (any, error) {
	p, err := s.Pods.GetPod(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	st, err := s.Pods.PodStats(r.Context(), p.ID)
	if err != nil {
		return nil, err
	}
	return statsOf(p, st), nil
}

func (s server) podConsole(r *http.Request) (any, error) {
	data, err := s.Pods.PodConsole(r.Context(), r.PathValue("id"))
	return text{"text/plain; charset=utf-8", data}, err
}

func (s server) generatePod(r *http.Request) (any, error) {
	p, err := s.Pods.GetPod(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	data, err := s.Generate(p)
	return text{"application/yaml", data}, err
}

func (s server) why(r *http.Request) (any, error) {
	w, err := s.Pods.Why(r.Context(), r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	return api.Why{
		What: w.What, ID: w.ID, Name: w.Name, Status: w.Status, At: w.At, Cause: string(w.Cause), Summary: w.Summary,
		Detail: w.Detail, Stage: w.Stage, Stderr: w.Stderr, Console: w.Console, Log: w.Log,
	}, nil
}
