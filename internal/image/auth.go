package image

import (
	"fmt"

	"github.com/docker/cli/cli/config"
)

// dockerHub is what Docker's config.json calls docker.io.
const dockerHub = "https://index.docker.io/v1/"

// DockerAuth gives the credentials that `docker login` has stored for the user
// who runs this, in config.json or with a credential helper; it serves as
// [PullOptions].Auth. A registry without any gives the zero Auth.
func DockerAuth() func(host string) (Auth, error) {
	return func(host string) (Auth, error) {
		file, err := config.Load(config.Dir())
		if err != nil {
			return Auth{}, fmt.Errorf("read Docker's configuration: %w", err)
		}
		if host == "docker.io" {
			host = dockerHub
		}
		found, err := file.GetAuthConfig(host)
		if err != nil {
			return Auth{}, err
		}
		return Auth{Username: found.Username, Password: found.Password, IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken}, nil
	}
}
