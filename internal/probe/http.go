package probe

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// What is taken of a server's answer.
const (
	maxHeader    = 64 << 10
	maxBody      = 10 << 10
	maxRedirects = 10
)

// get makes the request. Redirects are followed on the same host only; one to
// elsewhere says that the server is well, and is not followed.
func (g *HTTPGet) get(ctx context.Context, t Target) (string, error) {
	req, err := g.request(ctx)
	if err != nil {
		return "", fmt.Errorf("make a request: %w", err)
	}
	d := newDials(ctx, t)
	defer d.close()
	client := &http.Client{Transport: exchange{d}, CheckRedirect: checkRedirect}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	switch said := strings.TrimSpace(string(body)); {
	case err != nil:
		return "", fmt.Errorf("GET %s: read the answer: %w", req.URL.Redacted(), err)
	case resp.StatusCode < 200 || resp.StatusCode >= 400:
		return "", fmt.Errorf("GET %s: %s: %s", req.URL.Redacted(), resp.Status, said)
	case resp.StatusCode >= 300:
		return "not followed: a redirect to " + resp.Header.Get("Location"), nil
	default:
		return said, nil
	}
}

// An exchange is a request on a connection of its own. http.Transport does more
// than is wanted here: it has goroutines that outlive the request, and logs what a
// server sends out of turn.
type exchange struct {
	d *dials
}

// RoundTrip leaves the connection open until the check ends.
func (e exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	port := map[string]string{"http": "80", "https": "443"}[req.URL.Scheme]
	if port == "" {
		return nil, fmt.Errorf("unsupported protocol %q", req.URL.Scheme)
	}
	conn, err := e.d.dial(net.JoinHostPort(req.URL.Hostname(), cmp.Or(req.URL.Port(), port)))
	if err != nil {
		return nil, err
	}
	if req.URL.Scheme == "https" {
		// Any certificate will do, as with Kubernetes.
		conn = tls.Client(conn, &tls.Config{ServerName: req.URL.Hostname(), InsecureSkipVerify: true})
	}
	req = req.Clone(req.Context())
	req.Close = true // no further request
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	bounded := &io.LimitedReader{R: conn, N: maxHeader}
	resp, err := readResponse(bufio.NewReader(bounded), req)
	switch {
	case err != nil && bounded.N == 0:
		return nil, errors.New("headers are too long")
	case err != nil:
		return nil, err
	}
	bounded.N = 16 * maxBody // as it is encoded, in chunks of a byte maybe
	resp.Body = io.NopCloser(io.LimitReader(resp.Body, maxBody))
	return resp, nil
}

// readResponse skips what is informational.
func readResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case req.URL.Hostname() != via[0].URL.Hostname():
		return http.ErrUseLastResponse
	case len(via) > maxRedirects:
		return errors.New("too many redirects")
	}
	return nil
}

func (g *HTTPGet) request(ctx context.Context) (*http.Request, error) {
	u, err := url.Parse(g.Path)
	if err != nil {
		// Not a path that could be parsed: it is sent as it stands.
		u = &url.URL{Path: g.Path}
	}
	u = &url.URL{Scheme: "http", Host: address(g.Host, g.Port), Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}
	if g.HTTPS {
		u.Scheme = "https"
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path, u.RawPath = "/"+u.Path, ""
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range g.Headers {
		if strings.EqualFold(h[0], "Host") {
			req.Host = h[1]
			continue
		}
		req.Header.Add(h[0], h[1])
	}
	for name, value := range map[string]string{"User-Agent": UserAgent, "Accept": "*/*"} {
		if _, ok := req.Header[name]; !ok {
			req.Header.Set(name, value)
		}
	}
	return req, nil
}
