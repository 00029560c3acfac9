// Package rest is the edge that serves Hyper's own API (package api). It
// decodes, calls and encodes, and decides nothing.
package rest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/pod"
	"github.com/hyper-run/hyper/internal/template"
)

// These bound a request: any, and a pod file, which may hold what ConfigMaps do.
const (
	maxBody     = 64 << 10
	maxPlayBody = 4 << 20
)

// Config is what the API needs.
type Config struct {
	Pods      Pods
	Templates Templates // nil: there are none
	// Play makes the pods that a pod file (YAML) describes, all or nothing, and
	// does with them what o says. Generate is the way back.
	Play     func(ctx context.Context, data []byte, o api.PlayOptions) (made []pod.PodInfo, warnings []string, err error)
	Generate func(p pod.PodInfo) ([]byte, error)
	Log      *slog.Logger
}

// Pods is the part of pod.Set that is served here.
type Pods interface {
	pod.Pods
	Trace(ref string) (pod.Trace, error)
	Warm() (ready, wanted int)
	Shape(cpus, memMiB int, nic bool) (template.Shape, error)
}

// Templates is the part of template.Store that is served here.
type Templates interface {
	List() []template.Info
	Get(ref string) (template.Info, error)
	Make(ctx context.Context, shape template.Shape) (template.Info, error)
	Remove(ref string) error
}

type server struct{ Config }

// New returns the handler of everything below api.Prefix.
func New(c Config) http.Handler {
	s := server{c}
	mux := http.NewServeMux()
	for pattern, f := range map[string]func(*http.Request) (any, error){
		"GET /templates":             s.templates,
		"POST /templates":            s.makeTemplate,
		"GET /templates/{id}":        s.template,
		"DELETE /templates/{id}":     s.removeTemplate,
		"GET /containers/{id}/trace": s.trace,
		"GET /warm":                  s.warm,
		"GET /pods":                  s.listPods,
		"POST /pods":                 s.createPod,
		"POST /pods/play":            s.playPods,
		"GET /pods/{id}":             s.getPod,
		"DELETE /pods/{id}":          s.removePod,
		"POST /pods/{id}/start":      s.startPod,
		"POST /pods/{id}/stop":       s.stopPod,
		"POST /pods/{id}/restart":    s.restartPod,
		"POST /pods/{id}/kill":       s.killPod,
		"POST /pods/{id}/pause":      s.pausePod,
		"POST /pods/{id}/unpause":    s.unpausePod,
		"POST /pods/{id}/update":     s.updatePod,
		"GET /pods/{id}/stats":       s.podStats,
		"GET /pods/{id}/console":     s.podConsole,
		"GET /pods/{id}/generate":    s.generatePod,
		"GET /why/{ref}":             s.why,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, f) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.serve(w, r, func(*http.Request) (any, error) { return nil, errdefs.ErrNotFound.WithMessage("page not found") })
	})
	return http.StripPrefix(api.Prefix, mux)
}

// A text is an answer that is no JSON.
type text struct {
	contentType string
	data        []byte
}

func (s server) serve(w http.ResponseWriter, r *http.Request, f func(*http.Request) (any, error)) {
	most := int64(maxBody)
	if r.Pattern == "POST /pods/play" {
		most = maxPlayBody
	}
	r.Body = http.MaxBytesReader(w, r.Body, most)
	answer, err := f(r)
	status := http.StatusOK
	switch {
	case errdefs.IsNotModified(err):
		w.WriteHeader(http.StatusNotModified)
		return
	case err != nil:
		status = statusOf(err)
		answer = struct {
			Message string `json:"message"`
		}{err.Error()}
		if status == http.StatusInternalServerError {
			s.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if t, ok := answer.(text); ok {
		w.Header().Set("Content-Type", t.contentType)
		_, err = w.Write(t.data)
	} else {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		err = json.NewEncoder(w).Encode(answer)
	}
	if err != nil {
		s.Log.Debug("answer not sent", "path", r.URL.Path, "error", err)
	}
}

// statusOf is the HTTP status of an error, by its kind, as Docker's API has them.
func statusOf(err error) int {
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return http.StatusRequestEntityTooLarge
	case errdefs.IsFailedPrecondition(err), errdefs.IsAlreadyExists(err):
		return http.StatusConflict
	}
	return errhttp.ToHTTP(err)
}

// decode reads the request's JSON into v; an absent body leaves v as it is.
func decode(r *http.Request, what string, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return nil
	case errors.As(err, new(*http.MaxBytesError)):
		return err
	}
	return errdefs.ErrInvalidArgument.WithMessage("request for a " + what + ": " + err.Error())
}

func (s server) templates(*http.Request) (any, error) {
	list := []api.Template{}
	if s.Templates == nil {
		return list, nil
	}
	for _, t := range s.Templates.List() {
		list = append(list, templateOf(t))
	}
	return list, nil
}

var errNoTemplates = errdefs.ErrFailedPrecondition.WithMessage("this hyperd makes no templates (--templates=false, or its VMM cannot)")

func (s server) template(r *http.Request) (any, error) {
	if s.Templates == nil {
		return nil, errNoTemplates
	}
	t, err := s.Templates.Get(r.PathValue("id"))
	return templateOf(t), err
}

func (s server) removeTemplate(r *http.Request) (any, error) {
	if s.Templates == nil {
		return nil, errNoTemplates
	}
	return nil, s.Templates.Remove(r.PathValue("id"))
}

func (s server) makeTemplate(r *http.Request) (any, error) {
	if s.Templates == nil {
		return nil, errNoTemplates
	}
	var req api.TemplateRequest
	if err := decode(r, "template", &req); err != nil {
		return nil, err
	}
	shape, err := s.Pods.Shape(req.CPUs, req.MemMiB, !req.NoNIC)
	if err != nil {
		return nil, err
	}
	t, err := s.Templates.Make(r.Context(), shape)
	return templateOf(t), err
}

func templateOf(t template.Info) api.Template {
	return api.Template{
		ID: t.ID, Status: string(t.Status), Error: t.Error, Kernel: t.Shape.Kernel, Accel: string(t.Accel), VMM: t.VMM,
		CPUs: t.Shape.CPUs, MemMiB: t.Shape.MemMiB, Layers: t.Shape.Layers, Disks: t.Shape.Disks, NIC: t.Shape.NIC,
		Created: t.Created, LastUsed: t.LastUsed, Clones: t.Clones,
		MemoryBytes: t.MemoryBytes, DiskBytes: t.DiskBytes, MakeSeconds: t.MakeTime,
	}
}

func (s server) trace(r *http.Request) (any, error) {
	t, err := s.Pods.Trace(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	out := api.Trace{Container: t.Container, Begin: t.Begin, Road: string(t.Road)}
	for _, st := range t.Stages {
		out.Stages = append(out.Stages, api.Stage(st))
	}
	return out, nil
}

func (s server) warm(*http.Request) (any, error) {
	ready, wanted := s.Pods.Warm()
	return api.Warm{Ready: ready, Wanted: wanted}, nil
}
