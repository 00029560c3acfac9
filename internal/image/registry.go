package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A registry is the hosts that serve one reference, and how to talk to them.
type registry struct {
	remotes.Resolver
	named   reference.Named
	verb    string // pull or push
	clients []*http.Client
}

// registry sets up what is needed to reach the registry of a reference.
// Credentials go to that registry only, never to a mirror.
func (s *Store) registry(ctx context.Context, named reference.Named, auth func(string) (Auth, error)) (*registry, error) {
	r := &registry{named: named, verb: "pull"}
	creds := Auth{}
	if auth != nil {
		var err error
		if creds, err = auth(reference.Domain(named)); err != nil {
			return nil, fmt.Errorf("credentials of %s: %w", reference.Domain(named), err)
		}
	}
	upstream := ""
	options := config.HostOptions{
		Credentials: func(host string) (string, string, error) {
			if host != upstream {
				return "", "", nil
			}
			if creds.IdentityToken != "" {
				return "", creds.IdentityToken, nil
			}
			return creds.Username, creds.Password, nil
		},
		UpdateClient: func(c *http.Client) error { r.clients = append(r.clients, c); return nil },
	}
	if s.cfg.HostsDir != "" {
		options.HostDir = config.HostDirFromRoot(s.cfg.HostsDir)
	}
	hosts, err := config.ConfigureHosts(ctx, options)(reference.Domain(named))
	if err != nil {
		return nil, fmt.Errorf("settings of registry %s: %w", reference.Domain(named), err)
	}
	if len(hosts) > 0 {
		last := &hosts[len(hosts)-1]
		upstream = last.Host
		if creds.RegistryToken != "" {
			last.Authorizer = bearer(creds.RegistryToken)
		}
	}
	mirrors, err := r.mirrors(s.cfg.Mirrors[reference.Domain(named)])
	if err != nil {
		return nil, err
	}
	hosts = append(mirrors, hosts...)
	r.Resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) { return slices.Clone(hosts), nil },
	})
	return r, nil
}

func (r *registry) mirrors(bases []string) ([]docker.RegistryHost, error) {
	var hosts []docker.RegistryHost
	for _, base := range bases {
		u, err := url.Parse(base)
		if err != nil || u.Host == "" {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("mirror %q is not a URL", base))
		}
		client := &http.Client{Transport: docker.DefaultHTTPTransport(nil)}
		r.clients = append(r.clients, client)
		hosts = append(hosts, docker.RegistryHost{
			Client: client, Authorizer: docker.NewDockerAuthorizer(docker.WithAuthClient(client)),
			Host: u.Host, Scheme: u.Scheme, Path: path.Join("/", u.Path, "v2"),
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		})
	}
	return hosts, nil
}

// close lets go of idle connections.
func (r *registry) close() {
	for _, c := range r.clients {
		c.CloseIdleConnections()
	}
}

// bearer is a registry token, sent as it is.
type bearer string

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

func (bearer) AddResponses(context.Context, []*http.Response) error {
	return docker.ErrInvalidAuthorization
}

// resolve asks the registry what the reference stands for.
func (r *registry) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	_, desc, err := r.Resolve(ctx, r.named.String())
	if errdefs.IsNotFound(err) {
		return desc, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(r.named)))
	}
	return desc, r.explain(err)
}

// explain gives errors of a registry Docker's words and their kind.
func (r *registry) explain(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	code := 0
	if errors.As(err, &status) {
		code = status.StatusCode
	}
	denied := fmt.Sprintf("%s access denied for %s, repository does not exist or may require 'docker login': ", r.verb, reference.FamiliarName(r.named))
	var network net.Error
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errdefs.IsInvalidArgument(err) || errdefs.IsDataLoss(err) || errdefs.IsNotFound(err):
		return err
	case errors.Is(err, docker.ErrInvalidAuthorization) || code == http.StatusUnauthorized:
		return kind(fmt.Errorf("%sunauthorized: authentication required: %w", denied, err), errdefs.ErrUnauthenticated)
	case code == http.StatusForbidden:
		return kind(fmt.Errorf("%sdenied: requested access to the resource is denied: %w", denied, err), errdefs.ErrPermissionDenied)
	case code == http.StatusTooManyRequests:
		return kind(fmt.Errorf("toomanyrequests: %w", err), errdefs.ErrResourceExhausted)
	case errors.As(err, &network) || code >= 500 || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET):
		return kind(err, errdefs.ErrUnavailable)
	}
	return err
}

// kind gives an error a kind without changing its words.
func kind(err, kind error) error { return &kindError{err, kind} }

type kindError struct{ error, kind error }

func (e *kindError) Error() string   { return e.error.Error() }
func (e *kindError) Unwrap() []error { return []error{e.error, e.kind} }

// permanent says that trying again later is not expected to help.
func permanent(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsDataLoss(err) || errdefs.IsFailedPrecondition(err) ||
		errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotImplemented(err) || errors.Is(err, syscall.ENOSPC)
}
