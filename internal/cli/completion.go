package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// completionTime is as long as a shell is kept waiting for names.
const completionTime = 2 * time.Second

func newCompletion(*app) *cobra.Command {
	c := command("completion bash|zsh|fish", "Print a completion script for a shell", args(1, 1))
	c.Long = `Load it in a running shell, or put it where the shell looks for it:

  bash:  hyper completion bash > /etc/bash_completion.d/hyper
  zsh:   hyper completion zsh > "${fpath[1]}/_hyper"
  fish:  hyper completion fish > ~/.config/fish/completions/hyper.fish`
	c.ValidArgs = []string{"bash", "zsh", "fish"}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		switch args[0] {
		case "bash":
			return cmd.Root().GenBashCompletionV2(cmd.OutOrStdout(), true)
		case "zsh":
			return cmd.Root().GenZshCompletion(cmd.OutOrStdout())
		case "fish":
			return cmd.Root().GenFishCompletion(cmd.OutOrStdout(), true)
		}
		return withCode(exitFailed, &usageError{err: fmt.Errorf("no completion for %q", args[0]), usage: cmd.UseLine(), command: cmd.CommandPath()})
	}
	return c
}

// Which containers a command takes.
func anyState(container.ContainerState) bool  { return true }
func running(s container.ContainerState) bool { return s == container.StateRunning }
func paused(s container.ContainerState) bool  { return s == container.StatePaused }
func notRunning(s container.ContainerState) bool {
	return s != container.StateRunning && s != container.StatePaused
}

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeContainers offers the names of containers for the first most
// arguments, all if most < 0. It never starts a daemon.
func (a *app) completeContainers(most int, takes func(container.ContainerState) bool) completer {
	return a.complete(most, func(ctx context.Context) (names []string) {
		res, err := a.api().ContainerList(ctx, moby.ContainerListOptions{All: true})
		if err != nil {
			return nil
		}
		for _, c := range res.Items {
			if takes(c.State) && len(c.Names) > 0 {
				names = append(names, strings.TrimPrefix(c.Names[0], "/"))
			}
		}
		return names
	})
}

// completeImages is completeContainers for images.
func (a *app) completeImages(most int) completer {
	return a.complete(most, func(ctx context.Context) (names []string) {
		res, err := a.api().ImageList(ctx, moby.ImageListOptions{})
		if err != nil {
			return nil
		}
		for _, i := range res.Items {
			for _, t := range i.RepoTags {
				names = append(names, t)
				if short, ok := strings.CutSuffix(t, ":latest"); ok {
					names = append(names, short)
				}
			}
		}
		return names
	})
}

// Which pods a command takes, by their status.
func anyPod(string) bool { return true }
func runningPod(status string) bool {
	return status == "running" || status == "degraded"
}
func pausedPod(status string) bool  { return status == "paused" }
func stoppedPod(status string) bool { return status == "created" || status == "exited" }

// completePods is completeContainers for pods that were made as such.
func (a *app) completePods(most int, takes func(status string) bool) completer {
	return a.complete(most, func(ctx context.Context) (names []string) {
		pods, err := a.api().Pods(ctx)
		if err != nil {
			return nil
		}
		for _, p := range pods {
			if p.Name != "" && takes(p.Status) {
				names = append(names, p.Name)
			}
		}
		return names
	})
}

// completeFlag has a flag's value completed.
func (a *app) completeFlag(c *cobra.Command, flag string, with completer) {
	if err := c.RegisterFlagCompletionFunc(flag, with); err != nil {
		panic(err) // there is no such flag
	}
}

func (a *app) complete(most int, names func(context.Context) []string) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		host, _ := cmd.Root().Flags().GetString("host")
		if a.setHost(host) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a.dialer.Start = false
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		return names(ctx), cobra.ShellCompDirectiveNoFileComp
	}
}
