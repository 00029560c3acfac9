package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	moby "github.com/moby/moby/client"

	"github.com/hyper-run/hyper/api"
)

// Templates lists the templates there are.
func (c *Client) Templates(ctx context.Context) (list []api.Template, err error) {
	return list, c.native(ctx, http.MethodGet, "/templates", nil, &list)
}

// Template returns the one with an ID or a unique prefix of one.
func (c *Client) Template(ctx context.Context, id string) (t api.Template, err error) {
	return t, c.native(ctx, http.MethodGet, "/templates/"+url.PathEscape(id), nil, &t)
}

// CreateTemplate returns when there is such a template, in some seconds.
func (c *Client) CreateTemplate(ctx context.Context, r api.TemplateRequest) (t api.Template, err error) {
	return t, c.native(ctx, http.MethodPost, "/templates", r, &t)
}

// RemoveTemplate drops a template; VMs made of it run on.
func (c *Client) RemoveTemplate(ctx context.Context, id string) error {
	return c.native(ctx, http.MethodDelete, "/templates/"+url.PathEscape(id), nil, nil)
}

// Trace says where the time of a container's latest start went.
func (c *Client) Trace(ctx context.Context, container string) (t api.Trace, err error) {
	return t, c.native(ctx, http.MethodGet, "/containers/"+url.PathEscape(container)+"/trace", nil, &t)
}

// Warm is how many VMs are kept ready.
func (c *Client) Warm(ctx context.Context) (w api.Warm, err error) {
	return w, c.native(ctx, http.MethodGet, "/warm", nil, &w)
}

// native makes one request of Hyper's own API. A body that is bytes is sent as
// YAML, anything else as JSON; an answer may be *[]byte, to have it as it is.
// Errors have errdefs kinds.
func (c *Client) native(ctx context.Context, method, path string, body, answer any) error {
	req, err := nativeRequest(ctx, method, path, body)
	if err != nil {
		return err
	}
	conn, err := c.Dialer()(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return responseError(resp)
	}
	switch a := answer.(type) {
	case nil:
		return nil
	case *[]byte:
		*a, err = io.ReadAll(resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

func nativeRequest(ctx context.Context, method, path string, body any) (*http.Request, error) {
	contentType := ""
	var b io.Reader = http.NoBody
	switch v := body.(type) {
	case nil:
	case []byte:
		b, contentType = bytes.NewReader(v), "application/yaml"
	default:
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		b, contentType = bytes.NewReader(data), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+moby.DummyHost+api.Prefix+path, b)
	if err == nil && contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req, err
}
