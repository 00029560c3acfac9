package dockerapi

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// A route is an endpoint. In its path "{name}" stands for one or more path
// segments, since image names have slashes.
type route struct {
	method, path string
	serve        func(*api, *call) error
}

// routes are tried in this order, but a fixed path goes before one with a name.
var routes = []route{
	{"GET", "/_ping", (*api).ping},
	{"HEAD", "/_ping", (*api).ping},
	{"GET", "/version", (*api).versionInfo},
	{"GET", "/info", (*api).info},
	{"GET", "/events", (*api).events},
	{"GET", "/system/df", (*api).diskUsage},
	{"POST", "/auth", (*api).auth},

	{"POST", "/containers/create", (*api).create},
	{"GET", "/containers/json", (*api).list},
	{"POST", "/containers/prune", (*api).pruneContainers},
	{"GET", "/containers/{name}/json", (*api).inspect},
	{"GET", "/containers/{name}/top", (*api).top},
	{"GET", "/containers/{name}/logs", (*api).logs},
	{"GET", "/containers/{name}/stats", (*api).stats},
	{"GET", "/containers/{name}/attach/ws", (*api).attachWebsocket},
	{"POST", "/containers/{name}/start", (*api).start},
	{"POST", "/containers/{name}/stop", (*api).stop},
	{"POST", "/containers/{name}/restart", (*api).restart},
	{"POST", "/containers/{name}/kill", (*api).kill},
	{"POST", "/containers/{name}/pause", (*api).pause},
	{"POST", "/containers/{name}/unpause", (*api).unpause},
	{"POST", "/containers/{name}/rename", (*api).rename},
	{"POST", "/containers/{name}/update", (*api).update},
	{"POST", "/containers/{name}/wait", (*api).wait},
	{"POST", "/containers/{name}/resize", (*api).resize},
	{"POST", "/containers/{name}/attach", (*api).attach},
	{"POST", "/containers/{name}/exec", (*api).createExec},
	{"POST", "/exec/{name}/start", (*api).startExec},
	{"POST", "/exec/{name}/resize", (*api).resizeExec},
	{"GET", "/exec/{name}/json", (*api).inspectExec},
	{"DELETE", "/containers/{name}", (*api).remove},

	{"GET", "/images/json", (*api).listImages},
	{"POST", "/images/create", (*api).createImage},
	{"POST", "/images/load", (*api).loadImages},
	{"POST", "/images/prune", (*api).pruneImages},
	{"GET", "/images/get", (*api).saveImages},
	{"GET", "/images/{name}/get", (*api).saveImages},
	{"GET", "/images/{name}/json", (*api).inspectImage},
	{"GET", "/images/{name}/history", (*api).imageHistory},
	{"POST", "/images/{name}/push", (*api).pushImage},
	{"POST", "/images/{name}/tag", (*api).tagImage},
	{"DELETE", "/images/{name}", (*api).removeImage},

	{"GET", "/networks", (*api).listNetworks},
	{"GET", "/networks/", (*api).listNetworks},
	{"POST", "/networks/prune", (*api).pruneNetworks},
	{"GET", "/networks/{name}", (*api).inspectNetwork},
	{"GET", "/volumes", (*api).listVolumes},
	{"POST", "/volumes/prune", (*api).pruneVolumes},
	{"GET", "/volumes/{name}", (*api).inspectVolume},

	{"GET", "/containers/{name}/changes", unsupported("container changes")},
	{"GET", "/containers/{name}/export", unsupported("container export")},
	{"GET", "/containers/{name}/archive", unsupported("copying from containers")},
	{"HEAD", "/containers/{name}/archive", unsupported("copying from containers")},
	{"PUT", "/containers/{name}/archive", unsupported("copying into containers")},
	{"GET", "/containers/{name}/checkpoints", unsupported("checkpoint")},
	{"POST", "/containers/{name}/checkpoints", unsupported("checkpoint")},
	{"POST", "/commit", unsupported("commit")},
	{"POST", "/build", unsupported("build")},
	{"POST", "/build/prune", unsupported("build")},
	{"POST", "/build/cancel", unsupported("build")},
	{"POST", "/session", unsupported("build")},
	{"POST", "/grpc", unsupported("build")},
	{"GET", "/images/search", unsupported("image search")},
	{"GET", "/images/{name}/attestations", unsupported("image attestations")},
	{"GET", "/distribution/{name}/json", unsupported("distribution inspect")},
	{"POST", "/networks/create", unsupported("network create")},
	{"POST", "/networks/{name}/connect", unsupported("network connect")},
	{"POST", "/networks/{name}/disconnect", unsupported("network disconnect")},
	{"DELETE", "/networks/{name}", unsupported("network remove")},
	{"POST", "/volumes/create", unsupported("volume create")},
	{"PUT", "/volumes/{name}", unsupported("volume update")},
	{"DELETE", "/volumes/{name}", unsupported("volume remove")},
	{"GET", "/plugins", (*api).listPlugins},
	{"GET", "/plugins/{name}", unsupported("plugins")},
	{"POST", "/plugins/{name}", unsupported("plugins")},
	{"DELETE", "/plugins/{name}", unsupported("plugins")},

	{"POST", "/swarm/init", unsupported("swarm")},
	{"POST", "/swarm/join", unsupported("swarm")},
	{"POST", "/swarm/leave", notInSwarm},
	{"GET", "/swarm", notManager},
	{"GET", "/swarm/{name}", notManager},
	{"POST", "/swarm/{name}", notManager},
}

// swarmObjects exist only on the manager of a swarm, whatever is asked of them.
var swarmObjects = regexp.MustCompile(`^/(services|tasks|nodes|secrets|configs)(/|$)`)

var versionPrefix = regexp.MustCompile(`^/v([0-9]+)\.([0-9]+)(/.*)$`)

func unsupported(what string) func(*api, *call) error {
	return func(*api, *call) error {
		return errdefs.ErrNotImplemented.WithMessage(what + " is not supported yet")
	}
}

func notManager(*api, *call) error {
	return errdefs.ErrUnavailable.WithMessage(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
}

func notInSwarm(*api, *call) error {
	return errdefs.ErrUnavailable.WithMessage("This node is not part of a swarm")
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", a.server)
	h.Set("Api-Version", MaxVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")

	c := &call{w: w, r: r, minor: maxMinor}
	path := r.URL.Path
	if m := versionPrefix.FindStringSubmatch(path); m != nil {
		if err := c.setVersion(m[1], m[2]); err != nil {
			a.fail(c, err)
			return
		}
		path = m[3]
	}
	rt := find(r.Method, path, &c.name)
	if rt == nil {
		a.fail(c, errdefs.ErrNotFound.WithMessage("page not found"))
		return
	}
	if err := c.parseForm(); err != nil {
		a.fail(c, err)
		return
	}
	if err := rt(a, c); err != nil {
		a.fail(c, err)
	}
}

func (c *call) setVersion(major, minor string) error {
	v := major + "." + minor
	ma, err1 := strconv.Atoi(major)
	mi, err2 := strconv.Atoi(minor)
	switch {
	case err1 != nil || err2 != nil || ma > 1 || (ma == 1 && mi > maxMinor):
		return invalid("client version %s is too new. Maximum supported API version is %s", v, MaxVersion)
	case ma < 1 || mi < minMinor:
		return invalid("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, MinVersion)
	}
	c.minor = mi
	return nil
}

// find returns what serves a request, nil when nothing does, and sets name to
// what stands for {name}.
func find(method, path string, name *string) func(*api, *call) error {
	var found *route
	for i := range routes {
		rt := &routes[i]
		if rt.method != method {
			continue
		}
		before, after, hasName := strings.Cut(rt.path, "{name}")
		if !hasName && rt.path == path {
			*name = ""
			return rt.serve
		}
		if found == nil && hasName && len(path) > len(before)+len(after) &&
			strings.HasPrefix(path, before) && strings.HasSuffix(path, after) {
			found = rt
			*name = path[len(before) : len(path)-len(after)]
		}
	}
	switch {
	case found != nil:
		return found.serve
	case swarmObjects.MatchString(path):
		return notManager
	}
	return nil
}

// fail answers with an error, unless the client is gone or the answer has
// begun: then the connection is cut, so that the client sees it is not whole.
func (a *api) fail(c *call, err error) {
	status := statusOf(err)
	if c.r.Context().Err() != nil {
		return
	}
	if status == http.StatusInternalServerError {
		a.Log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "status", status, "error", err)
	}
	if c.begun {
		panic(http.ErrAbortHandler)
	}
	if status == http.StatusNotModified {
		c.w.WriteHeader(status)
		return
	}
	if err := c.json(status, errorBody{err.Error()}); err != nil {
		a.Log.Debug("answer not sent", "path", c.r.URL.Path, "error", err)
	}
}
