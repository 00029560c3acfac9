package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/moby/term"
	"github.com/spf13/cobra"
)

// The groups of 'hyper --help'.
const (
	groupCommon     = "common"
	groupManagement = "management"
	groupOther      = "other"
)

// A verb is one command of hyper: where its help puts it and what makes it.
type verb struct {
	name, group string
	make        func(*app) *cobra.Command
}

// verbs are the commands of hyper, in the order of the help's common ones.
func verbs() []verb {
	return []verb{
		{"run", groupCommon, newRun}, {"exec", groupCommon, newExec}, {"ps", groupCommon, newPs},
		{"pull", groupCommon, newPull}, {"push", groupCommon, newPush}, {"images", groupCommon, newImages},
		{"login", groupCommon, newLogin}, {"logout", groupCommon, newLogout}, {"version", groupCommon, newVersion},
		{"info", groupCommon, newInfo}, {"doctor", groupCommon, newDoctor},

		{"container", groupManagement, newContainer}, {"image", groupManagement, newImage}, {"pod", groupManagement, newPod}, {"system", groupManagement, newSystem}, {"template", groupManagement, newTemplate},

		{"attach", groupOther, newAttach}, {"completion", groupOther, newCompletion}, {"create", groupOther, newCreate},
		{"debug", groupOther, newDebug},
		{"events", groupOther, newEvents}, {"import", groupOther, newImport}, {"inspect", groupOther, newInspect},
		{"kill", groupOther, newKill}, {"load", groupOther, newLoad}, {"logs", groupOther, newLogs},
		{"pause", groupOther, newPause}, {"rename", groupOther, newRename}, {"restart", groupOther, newRestart},
		{"rm", groupOther, newRm}, {"rmi", groupOther, newRmi}, {"save", groupOther, newSave},
		{"start", groupOther, newStart}, {"stats", groupOther, newStats}, {"stop", groupOther, newStop},
		{"tag", groupOther, newTag}, {"top", groupOther, newTop}, {"unpause", groupOther, newUnpause},
		{"update", groupOther, newUpdate}, {"wait", groupOther, newWait}, {"why", groupOther, newWhy},
	}
}

// keepOrder has help list commands as verbs does, the most used first.
var keepOrder = sync.OnceFunc(func() { cobra.EnableCommandSorting = false })

// root is the whole command for args. When args begin with a command, only
// that one is made: declaring the flags of all takes longer than most of them
// run.
func (a *app) root(args []string) *cobra.Command {
	keepOrder()
	var host string
	root := &cobra.Command{
		Use:               "hyper [OPTIONS] COMMAND",
		Short:             "Runs every container in a virtual machine of its own",
		SilenceErrors:     true,
		SilenceUsage:      true,
		TraverseChildren:  true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Version:           a.Version,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.setHost(host) },
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return &usageError{err: fmt.Errorf("unknown command: hyper %s", args[0]), command: "hyper"}
		},
	}
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.Flags().StringVarP(&host, "host", "H", "", "Daemon to connect to: unix://PATH or tcp://HOST:PORT (HYPER_HOST; default \"unix:///run/hyper/hyper.sock\")")
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	root.PersistentFlags().Lookup("help").Hidden = true
	root.SetVersionTemplate(fmt.Sprintf("Hyper version %s, build %s\n", a.Version, a.Commit))
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(help)
	root.SetHelpCommand(&cobra.Command{Use: "help", Hidden: true, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		c, rest, err := root.Find(args)
		if err != nil || len(rest) > 0 {
			return &usageError{err: fmt.Errorf("unknown help topic: %s", strings.Join(args, " ")), command: "hyper"}
		}
		help(c, nil)
		return nil
	}})
	all := verbs()
	if len(args) > 0 {
		if i := slices.IndexFunc(all, func(v verb) bool { return v.name == args[0] }); i >= 0 {
			all = all[i : i+1]
		}
	}
	for _, v := range all {
		c := v.make(a)
		c.GroupID = v.group
		root.AddCommand(c)
	}
	for _, g := range []struct{ id, title string }{
		{groupCommon, "Common Commands:"}, {groupManagement, "Management Commands:"}, {groupOther, "Commands:"},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
	}
	return root
}

// flagError is what wrong flags give.
func flagError(cmd *cobra.Command, err error) error {
	return withCode(exitRefused, &usageError{err: err, usage: cmd.UseLine(), command: cmd.CommandPath()})
}

// args checks the number of arguments; most < 0 is no limit.
func args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		var want string
		switch {
		case len(got) >= least && (most < 0 || len(got) <= most):
			return nil
		case most == 0:
			want = "accepts no arguments"
		case least == most:
			want = "requires " + count(least)
		case len(got) < least:
			want = "requires at least " + count(least)
		default:
			want = "requires at most " + count(most)
		}
		return &usageError{err: fmt.Errorf("'%s' %s", cmd.CommandPath(), want), usage: cmd.UseLine(), command: cmd.CommandPath()}
	}
}

func count(n int) string {
	if n == 1 {
		return "1 argument"
	}
	return fmt.Sprintf("%d arguments", n)
}

// command makes a command with what all have in common. aliases are the other
// names it goes by, for its help.
func command(use, short string, pos cobra.PositionalArgs, aliases ...string) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: pos, DisableFlagsInUseLine: true}
	if len(aliases) > 0 {
		c.Annotations = map[string]string{"aliases": strings.Join(aliases, ", ")}
	}
	return c
}

// group makes a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return &usageError{err: fmt.Errorf("unknown command: %s %s", cmd.CommandPath(), args[0]), command: cmd.CommandPath()}
	}}
	c.AddCommand(commands...)
	return c
}

// as gives a command another name, as 'hyper container ls' is 'hyper ps'.
func as(c *cobra.Command, name string, aliases ...string) *cobra.Command {
	_, rest, _ := strings.Cut(c.Use, " ")
	c.Use = strings.TrimSpace(name + " " + rest)
	c.Aliases = aliases
	return c
}

// help prints a command's help in Docker's form.
func help(cmd *cobra.Command, _ []string) {
	var b strings.Builder
	use := cmd.UseLine()
	if cmd.HasAvailableSubCommands() {
		use = cmd.CommandPath() + " COMMAND"
		if !cmd.HasParent() {
			use = cmd.CommandPath() + " [OPTIONS] COMMAND"
		}
	}
	fmt.Fprintf(&b, "Usage:  %s\n\n%s\n", use, cmd.Short)
	if cmd.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", cmd.Long)
	}
	if names := cmd.Annotations["aliases"]; names != "" {
		fmt.Fprintf(&b, "\nAliases:\n  %s\n", names)
	}
	if cmd.HasParent() {
		helpFlags(&b, cmd, "Options:")
	}
	helpCommands(&b, cmd)
	if !cmd.HasParent() {
		helpFlags(&b, cmd, "Global Options:")
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\nRun '%s COMMAND --help' for more information on a command.\n", cmd.CommandPath())
	}
	fmt.Fprint(cmd.OutOrStdout(), b.String())
}

func helpFlags(b *strings.Builder, cmd *cobra.Command, title string) {
	if !cmd.HasAvailableLocalFlags() {
		return
	}
	width := 80
	if fd, isTerminal := term.GetFdInfo(cmd.OutOrStdout()); isTerminal {
		if ws, err := term.GetWinsize(fd); err == nil && ws.Width > 0 {
			width = int(ws.Width)
		}
	}
	fmt.Fprintf(b, "\n%s\n%s\n", title, strings.TrimRight(cmd.LocalFlags().FlagUsagesWrapped(width-1), " \n"))
}

func helpCommands(b *strings.Builder, cmd *cobra.Command) {
	list := func(title string, in func(*cobra.Command) bool) {
		any := false
		for _, c := range cmd.Commands() {
			if !c.IsAvailableCommand() || !in(c) {
				continue
			}
			if !any {
				fmt.Fprintf(b, "\n%s\n", title)
				any = true
			}
			fmt.Fprintf(b, "  %-11s %s\n", c.Name(), c.Short)
		}
	}
	if len(cmd.Groups()) == 0 {
		list("Commands:", func(*cobra.Command) bool { return true })
		return
	}
	for _, g := range cmd.Groups() {
		list(g.Title, func(c *cobra.Command) bool { return c.GroupID == g.ID })
	}
}

var errNotTTY = errors.New("standard input is not a terminal, which -t needs")
