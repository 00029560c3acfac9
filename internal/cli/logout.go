package cli

import (
	"context"

	"github.com/docker/cli/cli/config"
	"github.com/spf13/cobra"
)

func newLogout(a *app) *cobra.Command {
	c := command("logout [SERVER]", "Log out from a registry", args(0, 1))
	c.RunE = run(func(_ context.Context, args []string) error {
		server := ""
		if len(args) > 0 {
			server = args[0]
		}
		server = authServer(server)
		cfg, err := config.Load("")
		if err != nil {
			return cannot(err, "log out from %s", server)
		}
		if _, ok := cfg.AuthConfigs[server]; !ok && cfg.CredentialsStore == "" && len(cfg.CredentialHelpers) == 0 {
			a.println("Not logged in to", server)
			return nil
		}
		a.println("Removing login credentials for", server)
		return cannot(cfg.GetCredentialsStore(server).Erase(server), "log out from %s", server)
	})
	return c
}
