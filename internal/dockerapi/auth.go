package dockerapi

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	"github.com/hyper-run/hyper/internal/image"
)

const (
	indexServer = "https://index.docker.io/v1/" // Docker's name of its own registry
	hubHost     = "registry-1.docker.io"        // where that really is

	loginTimeout = 30 * time.Second
	maxToken     = 1 << 20
)

// registryHost is the host of a registry, however it is named.
func registryHost(name string) string {
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name = rest
	}
	name, _, _ = strings.Cut(name, "/")
	switch name {
	case "docker.io", "index.docker.io":
		return hubHost
	}
	return name
}

func imageAuth(c registry.AuthConfig) image.Auth {
	a := image.Auth{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	if raw, err := base64.StdEncoding.DecodeString(c.Auth); err == nil && a.Username == "" {
		a.Username, a.Password, _ = strings.Cut(string(raw), ":")
	}
	return a
}

// auth checks credentials with their registry, for "docker login".
func (a *api) auth(c *call) error {
	var cfg registry.AuthConfig
	if err := c.decode(&cfg); err != nil {
		return err
	}
	if cfg.ServerAddress == "" {
		cfg.ServerAddress = indexServer
	}
	ctx, cancel := context.WithTimeout(c.ctx(), loginTimeout)
	defer cancel()
	host := registryHost(cfg.ServerAddress)
	if err := login(ctx, host, imageAuth(cfg)); err != nil {
		return fmt.Errorf("login to %s: %w", host, err)
	}
	return c.json(http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

// login asks the registry's base endpoint with the credentials, as its
// challenge demands: directly, or through its token server.
func login(ctx context.Context, host string, auth image.Auth) error {
	scheme := "https"
	if isLoopback(host) {
		scheme = "http"
	}
	base := scheme + "://" + host + "/v2/"
	res, err := get(ctx, base, nil)
	if err != nil {
		return errors.Join(errdefs.ErrUnavailable, err)
	}
	challenge := res.Header.Get("Www-Authenticate")
	switch {
	case res.StatusCode == http.StatusOK:
		return nil
	case res.StatusCode != http.StatusUnauthorized:
		return errdefs.ErrUnavailable.WithMessage("the registry answered " + res.Status)
	}
	kind, params, _ := strings.Cut(challenge, " ")
	switch strings.ToLower(kind) {
	case "basic":
		res, err = get(ctx, base, &auth)
	case "bearer":
		res, err = requestToken(ctx, challengeParams(params), auth)
	default:
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("the registry asks for %q authentication", kind))
	}
	switch {
	case err != nil:
		return errors.Join(errdefs.ErrUnavailable, err)
	case res.StatusCode == http.StatusOK:
		return nil
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return errdefs.ErrUnauthenticated.WithMessage("unauthorized: incorrect username or password")
	}
	return errdefs.ErrUnavailable.WithMessage("the registry answered " + res.Status)
}

func requestToken(ctx context.Context, params map[string]string, auth image.Auth) (*http.Response, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" {
		return nil, fmt.Errorf("the registry names no token server: %q", params["realm"])
	}
	if realm.Scheme != "https" && !isLoopback(realm.Host) {
		return nil, fmt.Errorf("the registry wants the password sent in clear to %s", realm)
	}
	q := realm.Query()
	q.Set("service", params["service"])
	q.Set("account", auth.Username)
	q.Set("client_id", "hyper")
	if auth.IdentityToken == "" {
		realm.RawQuery = q.Encode()
		return get(ctx, realm.String(), &auth)
	}
	q.Set("grant_type", "refresh_token")
	q.Set("refresh_token", auth.IdentityToken)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(q.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(req)
}

func get(ctx context.Context, url string, auth *image.Auth) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if auth != nil && auth.Username != "" {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	return do(req)
}

// do sends req and reads the answer away.
func do(req *http.Request) (*http.Response, error) {
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, maxToken))
	return res, err
}

var challengeParam = regexp.MustCompile(`([a-zA-Z_]+)="([^"]*)"`)

// challengeParams parses the parameters of a WWW-Authenticate header.
func challengeParams(s string) map[string]string {
	params := make(map[string]string)
	for _, m := range challengeParam.FindAllStringSubmatch(s, -1) {
		params[strings.ToLower(m[1])] = m[2]
	}
	return params
}

func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && a.IsLoopback()
}
