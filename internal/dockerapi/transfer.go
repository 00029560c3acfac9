package dockerapi

import (
	"cmp"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/image"
)

// progressInterval is how often the progress of one layer is sent.
const progressInterval = 100 * time.Millisecond

// layerID tells a layer's progress, which redraws its line, from what is said
// of a tag.
var layerID = regexp.MustCompile(`^[0-9a-f]{12}$`)

// A progress writes a transfer's progress as Docker's clients read it. The
// answer begins with its first line: what fails before is an ordinary error.
// Safe for concurrent use.
type progress struct {
	c *call

	mu   sync.Mutex
	out  *lines
	sent map[string]sentProgress // by layer
}

type sentProgress struct {
	action string
	at     time.Time
}

func (p *progress) report(s image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.sent[s.ID]
	if s.ID != "" && s.Action == last.action && s.Current < s.Total && time.Since(last.at) < progressInterval {
		return
	}
	if p.sent == nil {
		p.sent = make(map[string]sentProgress)
	}
	p.sent[s.ID] = sentProgress{s.Action, time.Now()}
	m := jsonstream.Message{ID: s.ID, Status: s.Action}
	if layerID.MatchString(s.ID) {
		m.Progress = &jsonstream.Progress{Current: s.Current, Total: s.Total}
	}
	p.writeLocked(m)
}

func (p *progress) write(v any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writeLocked(v)
}

func (p *progress) writeLocked(v any) {
	if p.out == nil {
		p.out = p.c.lines("application/json")
	}
	_ = p.out.write(v) // a client that is gone ends the transfer through its context
}

// begin sends the answer's head if nothing was reported.
func (p *progress) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil {
		p.out = p.c.lines("application/json")
	}
}

// fail reports err as the last line, or as the answer when there was none.
func (p *progress) fail(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil {
		return err
	}
	return p.out.write(struct {
		jsonstream.Message
		Error string `json:"error"` // for older clients
	}{jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, err.Error()})
}

// createImage is pull, or import when there is no fromImage.
func (a *api) createImage(c *call) error {
	if c.form.Get("fromImage") == "" {
		return a.importImage(c)
	}
	ref, err := pullReference(c.form.Get("fromImage"), c.form.Get("tag"))
	if err != nil {
		return err
	}
	auth, err := c.registryAuth(ref)
	if err != nil {
		return err
	}
	name := reference.FamiliarString(ref)
	p := &progress{c: c}
	img, err := a.Images.Pull(c.ctx(), ref.String(), image.PullOptions{Platform: c.form.Get("platform"), Auth: auth, Progress: p.report})
	if err != nil {
		return p.fail(err)
	}
	a.imageEvent("pull", name, name, img)
	p.begin()
	return nil
}

// noPlatform refuses to choose a platform where images have only one.
func (c *call) noPlatform(what string) error {
	if c.form.Get("platform") == "" && c.form.Get("platforms") == "" {
		return nil
	}
	return errdefs.ErrNotImplemented.WithMessage("the platform option of image " + what + " is not supported yet: images here have one platform")
}

func pullReference(from, tag string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(strings.TrimSuffix(from, ":"))
	if err != nil {
		return nil, invalid("%v", err)
	}
	if d, derr := digest.Parse(tag); derr == nil {
		ref, err = reference.WithDigest(reference.TrimNamed(ref), d)
	} else if tag != "" {
		ref, err = reference.WithTag(reference.TrimNamed(ref), tag)
	}
	switch {
	case err != nil:
		return nil, invalid("%v", err)
	case reference.FamiliarName(ref) == "scratch":
		return nil, errdefs.ErrPermissionDenied.WithMessage("'scratch' is a reserved name")
	case reference.IsNameOnly(ref):
		return nil, errdefs.ErrNotImplemented.WithMessage("pulling all tags of a repository is not supported yet: give a tag")
	}
	return ref, nil
}

// tagOf is the tag or digest of ref.
func tagOf(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Tagged:
		return r.Tag()
	case reference.Digested:
		return r.Digest().String()
	}
	return ""
}

// registryAuth is the credentials that came with the request. They are for
// the registry of ref and go to no other.
func (c *call) registryAuth(ref reference.Named) (func(host string) (image.Auth, error), error) {
	header := c.r.Header.Get(registry.AuthHeader)
	if header == "" {
		return nil, nil
	}
	cfg, err := authconfig.Decode(header)
	if err != nil {
		return nil, invalid("%s: %v", registry.AuthHeader, err)
	}
	auth := imageAuth(*cfg)
	return func(host string) (image.Auth, error) {
		if registryHost(host) == registryHost(reference.Domain(ref)) {
			return auth, nil
		}
		return image.Auth{}, nil
	}, nil
}

func (a *api) importImage(c *call) error {
	if err := c.noPlatform("import"); err != nil {
		return err
	}
	if src := c.form.Get("fromSrc"); src != "-" {
		if src == "" {
			return invalid("fromImage or fromSrc must be given")
		}
		return errdefs.ErrNotImplemented.WithMessage("importing from a URL is not supported yet: send the archive")
	}
	ref, err := repoTag(c.form.Get("repo"), c.form.Get("tag"))
	if err != nil {
		return err
	}
	name := ""
	if ref != nil {
		name = reference.FamiliarString(ref)
	}
	img, err := a.Images.Import(c.ctx(), c.r.Body, name, c.form["changes"], cmp.Or(c.form.Get("message"), "Imported from -"))
	if err != nil {
		return err
	}
	a.imageEvent("import", img.ID.String(), cmp.Or(name, img.ID.String()), img)
	(&progress{c: c}).write(jsonstream.Message{Status: img.ID.String()})
	return nil
}

func (a *api) pushImage(c *call) error {
	if err := c.noPlatform("push"); err != nil {
		return err
	}
	ref, err := reference.ParseNormalizedNamed(c.name)
	if err != nil {
		return invalid("%v", err)
	}
	if tag := c.form.Get("tag"); tag != "" {
		if ref, err = reference.WithTag(reference.TrimNamed(ref), tag); err != nil {
			return invalid("%v", err)
		}
	}
	if reference.IsNameOnly(ref) {
		return errdefs.ErrNotImplemented.WithMessage("pushing all tags of a repository is not supported yet: give a tag")
	}
	auth, err := c.registryAuth(ref)
	if err != nil {
		return err
	}
	name := reference.FamiliarString(ref)
	img, err := a.Images.Resolve(c.ctx(), name)
	if err != nil {
		return err
	}
	p := &progress{c: c}
	if err := a.Images.Push(c.ctx(), ref.String(), image.PullOptions{Auth: auth, Progress: p.report}); err != nil {
		return p.fail(err)
	}
	a.imageEvent("push", name, name, img)
	aux, err := json.Marshal(map[string]any{"Tag": tagOf(ref), "Digest": img.Manifest.Digest, "Size": img.Manifest.Size})
	if err != nil {
		return p.fail(err)
	}
	p.write(jsonstream.Message{Progress: &jsonstream.Progress{}, Aux: (*json.RawMessage)(&aux)})
	return nil
}

func (a *api) loadImages(c *call) error {
	if err := c.noPlatform("load"); err != nil {
		return err
	}
	p := &progress{c: c}
	quiet := c.flag("quiet", true)
	images, err := a.Images.Load(c.ctx(), c.r.Body, func(s image.Progress) {
		switch {
		case s.ID == "": // what was loaded
			p.write(jsonstream.Message{Stream: s.Action + "\n"})
		case !quiet:
			p.report(s)
		}
	})
	for _, img := range images {
		a.imageEvent("load", img.ID.String(), img.ID.String(), img)
	}
	if err != nil {
		return p.fail(err)
	}
	p.begin()
	return nil
}

func (a *api) saveImages(c *call) error {
	if err := c.noPlatform("save"); err != nil {
		return err
	}
	names := c.form["names"]
	if c.name != "" {
		names = []string{c.name}
	}
	if len(names) == 0 {
		return invalid("no image names given")
	}
	for _, name := range names {
		img, err := a.Images.Resolve(c.ctx(), name)
		if err != nil {
			return err
		}
		a.imageEvent("save", img.ID.String(), img.ID.String(), img)
	}
	return a.Images.Save(c.ctx(), names, lateWriter{c})
}

// A lateWriter begins the answer with the first byte.
type lateWriter struct{ c *call }

func (w lateWriter) Write(p []byte) (int, error) {
	if !w.c.begun {
		w.c.begin("application/x-tar", http.StatusOK)
	}
	return w.c.w.Write(p)
}
