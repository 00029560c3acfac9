package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/hyper-run/hyper/api"
)

// Methods that take the ref of a pod accept its ID, a unique prefix of it, its
// name, or the name or ID of a container that has a pod of its own.

// podPath is the path of a pod, or of something of it, with a query.
func podPath(ref, of string, q url.Values) string {
	p := "/pods/" + url.PathEscape(ref) + of
	if len(q) > 0 {
		p += "?" + q.Encode()
	}
	return p
}

// query has the names of those that are set.
func query(set map[string]bool) url.Values {
	q := url.Values{}
	for name, on := range set {
		if on {
			q.Set(name, "true")
		}
	}
	return q
}

func seconds(timeout *int) url.Values {
	if timeout == nil {
		return nil
	}
	return url.Values{"t": {strconv.Itoa(*timeout)}}
}

// Pods lists all pods, newest first, also those made for one container.
func (c *Client) Pods(ctx context.Context) (list []api.Pod, err error) {
	return list, c.native(ctx, http.MethodGet, "/pods", nil, &list)
}

// Pod returns one pod.
func (c *Client) Pod(ctx context.Context, ref string) (p api.Pod, err error) {
	return p, c.native(ctx, http.MethodGet, podPath(ref, "", nil), nil, &p)
}

// CreatePod makes a pod without containers.
func (c *Client) CreatePod(ctx context.Context, r api.PodCreate) (p api.Pod, err error) {
	return p, c.native(ctx, http.MethodPost, "/pods", r, &p)
}

// RemovePod removes a pod and its containers; one that runs only with force.
func (c *Client) RemovePod(ctx context.Context, ref string, force bool) error {
	return c.native(ctx, http.MethodDelete, podPath(ref, "", query(map[string]bool{"force": force})), nil, nil)
}

// StartPod starts a pod's VM and its containers. With wait it returns when all
// are ready, or one never will be, or after timeout seconds; 0: for ever.
func (c *Client) StartPod(ctx context.Context, ref string, wait bool, timeout int) error {
	return c.native(ctx, http.MethodPost, podPath(ref, "/start", waiting(url.Values{}, wait, timeout)), nil, nil)
}

func waiting(q url.Values, wait bool, timeout int) url.Values {
	if wait {
		q.Set("wait", "true")
		if timeout > 0 {
			q.Set("timeout", strconv.Itoa(timeout))
		}
	}
	return q
}

// StopPod stops all containers and the VM; nil timeout: their own.
func (c *Client) StopPod(ctx context.Context, ref string, timeout *int) error {
	return c.native(ctx, http.MethodPost, podPath(ref, "/stop", seconds(timeout)), nil, nil)
}

// RestartPod is StopPod, then StartPod.
func (c *Client) RestartPod(ctx context.Context, ref string, timeout *int) error {
	return c.native(ctx, http.MethodPost, podPath(ref, "/restart", seconds(timeout)), nil, nil)
}

// KillPod sends a signal to the process of every container; "": SIGKILL.
func (c *Client) KillPod(ctx context.Context, ref, signal string) error {
	var q url.Values
	if signal != "" {
		q = url.Values{"signal": {signal}}
	}
	return c.native(ctx, http.MethodPost, podPath(ref, "/kill", q), nil, nil)
}

// PausePod stops the CPUs of a pod's VM.
func (c *Client) PausePod(ctx context.Context, ref string) error {
	return c.native(ctx, http.MethodPost, podPath(ref, "/pause", nil), nil, nil)
}

// UnpausePod lets them go on.
func (c *Client) UnpausePod(ctx context.Context, ref string) error {
	return c.native(ctx, http.MethodPost, podPath(ref, "/unpause", nil), nil, nil)
}

// UpdatePod changes the size of a pod.
func (c *Client) UpdatePod(ctx context.Context, ref string, r api.PodUpdate) error {
	return c.native(ctx, http.MethodPost, podPath(ref, "/update", nil), r, nil)
}

// PodStats says what a pod uses now.
func (c *Client) PodStats(ctx context.Context, ref string) (s api.PodStats, err error) {
	return s, c.native(ctx, http.MethodGet, podPath(ref, "/stats", nil), nil, &s)
}

// PodConsole returns the last lines of the console of a pod's kernel.
func (c *Client) PodConsole(ctx context.Context, ref string) (text []byte, err error) {
	return text, c.native(ctx, http.MethodGet, podPath(ref, "/console", nil), nil, &text)
}

// GeneratePod returns a pod as a Kubernetes v1/Pod in YAML.
func (c *Client) GeneratePod(ctx context.Context, ref string) (yaml []byte, err error) {
	return yaml, c.native(ctx, http.MethodGet, podPath(ref, "/generate", nil), nil, &yaml)
}

// PlayPods makes the pods of a pod file (YAML), and starts them unless o says
// otherwise.
func (c *Client) PlayPods(ctx context.Context, yaml []byte, o api.PlayOptions) (p api.Played, err error) {
	q := waiting(query(map[string]bool{"replace": o.Replace}), o.Wait, o.Timeout)
	if o.Create {
		q.Set("start", "false")
	}
	if o.File != "" {
		q.Set("file", o.File)
	}
	path := "/pods/play"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return p, c.native(ctx, http.MethodPost, path, yaml, &p)
}

// Why says why a container, or else a pod, is not running.
func (c *Client) Why(ctx context.Context, ref string) (w api.Why, err error) {
	return w, c.native(ctx, http.MethodGet, "/why/"+url.PathEscape(ref), nil, &w)
}
