package cli

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/moby/moby/api/types/registry"
	moby "github.com/moby/moby/client"
	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/stdio"
)

// hubServer is the key of Docker Hub in Docker's config.json.
const hubServer = "https://index.docker.io/v1/"

// authServer is the key under which config.json keeps a registry's credentials.
func authServer(registry string) string {
	switch registry {
	case "", "docker.io", "index.docker.io", "registry-1.docker.io":
		return hubServer
	}
	return registry
}

// registryAuth is the header with the credentials for an image, from Docker's
// config.json and its credential helpers; "" when there are none.
func registryAuth(ref reference.Named) (string, error) {
	cfg, err := config.Load("")
	if err != nil {
		return "", err
	}
	auth, err := cfg.GetAuthConfig(authServer(reference.Domain(ref)))
	if err != nil {
		return "", fmt.Errorf("credentials for %s: %w", reference.Domain(ref), err)
	}
	if auth == (types.AuthConfig{}) {
		return "", nil
	}
	data, err := json.Marshal(registry.AuthConfig{
		Username: auth.Username, Password: auth.Password, Auth: auth.Auth, ServerAddress: auth.ServerAddress,
		IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	})
	if err != nil {
		return "", err
	}
	return base64.URLEncoding.EncodeToString(data), nil
}

func newLogin(a *app) *cobra.Command {
	c := command("login [OPTIONS] [SERVER]", "Authenticate to a registry", args(0, 1))
	var user, password string
	var fromStdin bool
	c.Flags().StringVarP(&password, "password", "p", "", "Password or Personal Access Token (PAT)")
	c.Flags().BoolVar(&fromStdin, "password-stdin", false, "Take the Password or Personal Access Token (PAT) from stdin")
	c.Flags().StringVarP(&user, "username", "u", "", "Username")
	c.RunE = run(func(ctx context.Context, args []string) error {
		server := ""
		if len(args) > 0 {
			server = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://"), "/")
		}
		server = authServer(server)
		if fromStdin && password != "" {
			return cannot(errors.New("--password and --password-stdin exclude each other"), "log in to %s", server)
		}
		if fromStdin && user == "" {
			return cannot(errors.New("--password-stdin needs --username"), "log in to %s", server)
		}
		return cannot(a.login(ctx, server, user, password, fromStdin), "log in to %s", server)
	})
	return c
}

func (a *app) login(ctx context.Context, server, user, password string, fromStdin bool) error {
	if password != "" {
		fmt.Fprintln(a.err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	}
	in := bufio.NewReader(a.in)
	var err error
	switch {
	case fromStdin:
		data, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		password = strings.TrimRight(string(data), "\r\n")
	case user == "":
		if user, err = a.ask(in, "Username: "); err != nil {
			return err
		}
	}
	if password == "" {
		if password, err = a.askSecret(in, "Password: "); err != nil {
			return err
		}
	}
	if user == "" || password == "" {
		return errors.New("user name and password are needed")
	}
	res, err := a.api().RegistryLogin(ctx, moby.RegistryLoginOptions{Username: user, Password: password, ServerAddress: server})
	if err != nil {
		return err
	}
	auth := types.AuthConfig{Username: user, Password: password, ServerAddress: server}
	if t := res.Auth.IdentityToken; t != "" {
		auth.Password, auth.IdentityToken = "", t
	}
	cfg, err := config.Load("")
	if err != nil {
		return err
	}
	if err := cfg.GetCredentialsStore(server).Store(auth); err != nil {
		return fmt.Errorf("store the credentials: %w", err)
	}
	a.println("Login Succeeded")
	return nil
}

// ask reads a line from a terminal.
func (a *app) ask(in *bufio.Reader, prompt string) (string, error) {
	if _, ok := stdio.Terminal(a.in); !ok {
		return "", hinted{errors.New("standard input is not a terminal"), "give --username and --password-stdin"}
	}
	fmt.Fprint(a.out, prompt)
	line, err := in.ReadString('\n')
	return strings.TrimSpace(line), err
}

// askSecret is ask without an echo.
func (a *app) askSecret(in *bufio.Reader, prompt string) (string, error) {
	if fd, ok := stdio.Terminal(a.in); ok {
		state, err := term.SaveState(fd)
		if err != nil {
			return "", err
		}
		defer func() {
			_ = term.RestoreTerminal(fd, state)
			fmt.Fprintln(a.out)
		}()
		if err := term.DisableEcho(fd, state); err != nil {
			return "", err
		}
	}
	return a.ask(in, prompt)
}
