package cli

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command has a help that names it, and no two flags share a name.
func TestHelp(t *testing.T) {
	a := &app{Config: Config{Version: "1.0"}, out: io.Discard, err: io.Discard}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		var out strings.Builder
		c.SetOut(&out)
		help(c, nil)
		if !strings.HasPrefix(out.String(), "Usage:  "+c.CommandPath()) || !strings.Contains(out.String(), c.Short) {
			t.Errorf("%s: %s", c.CommandPath(), &out)
		}
		for line := range strings.SplitSeq(out.String(), "\n") {
			if len(line) > 100 {
				t.Errorf("%s: a line of %d characters: %s", c.CommandPath(), len(line), line)
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(a.root(nil))
}

func TestUsage(t *testing.T) {
	tests := []struct {
		args string
		code int
		err  string
	}{
		{"nonsense", 1, "hyper: unknown command: hyper nonsense\n\nSee 'hyper --help'\n"},
		{"container nonsense", 1, "hyper: unknown command: hyper container nonsense\n\nSee 'hyper container --help'\n"},
		{"run --nonsense x", 125, "hyper: unknown flag: --nonsense\n\nUsage:  hyper run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nSee 'hyper run --help'\n"},
		{"ps --nonsense", 125, "hyper: unknown flag: --nonsense\n\nUsage:  hyper ps [OPTIONS]\n\nSee 'hyper ps --help'\n"},
		{"run", 1, "hyper: 'hyper run' requires at least 1 argument\n\nUsage:  hyper run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nSee 'hyper run --help'\n"},
		{"rename a", 1, "hyper: 'hyper rename' requires 2 arguments\n\nUsage:  hyper rename CONTAINER NEW_NAME\n\nSee 'hyper rename --help'\n"},
		{"ps a", 1, "hyper: 'hyper ps' accepts no arguments\n\nUsage:  hyper ps [OPTIONS]\n\nSee 'hyper ps --help'\n"},
		{"run -p 80 x", 125, "hyper: cannot run: --publish is not supported yet\n"},
		{"create -v /a:/b x", 125, "hyper: cannot create: --volume is not supported yet\n"},
		{"run -d -a stdout x", 125, "hyper: cannot run: --attach and --detach exclude each other\n"},
		{"exec --detach-keys nonsense a b", 1, "hyper: cannot exec in a: --detach-keys nonsense: Unknown character: 'nonsense'\n"},
		{"-H nonsense ps", 1, "hyper: host \"nonsense\": must be unix://PATH or tcp://HOST:PORT\n"},
		{"run --platform windows/amd64 x", 125, "hyper: cannot run: --platform \"windows/amd64\": must be linux/ARCH[/VARIANT]\n"},
		{"ps -f nonsense", 125, "hyper: invalid argument \"nonsense\" for \"-f, --filter\" flag: invalid filter 'nonsense': must be NAME=VALUE\n\nUsage:  hyper ps [OPTIONS]\n\nSee 'hyper ps --help'\n"},
		{"completion tcsh", 1, "hyper: no completion for \"tcsh\"\n\nUsage:  hyper completion bash|zsh|fish\n\nSee 'hyper completion --help'\n"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			var out, errOut strings.Builder
			code := Main(t.Context(), Config{}, strings.Fields(test.args), nil, &out, &errOut)
			if code != test.code || errOut.String() != test.err || out.Len() > 0 {
				t.Errorf("%d, out %q, err:\n%s\nwant:\n%s", code, &out, &errOut, test.err)
			}
		})
	}
}

func TestComplete(t *testing.T) {
	d := listsDaemon(t)
	tests := []struct{ args, want string }{
		{"stop ", "web\n:4\n"},
		{"start ", "once\n:4\n"},
		{"rm web ", "web\nonce\n:4\n"},
		{"run ", "nginx:latest\nnginx\nlocalhost:5000/nginx:1\n:4\n"},
		{"run nginx ", ":4\n"},
		{"container sto", "stop\tStop one or more running containers\n:4\n"},
		{"ru", "run\tCreate and run a new container from an image\n:4\n"},
		{"completion ", "bash\nzsh\nfish\n:4\n"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			t.Setenv("HYPER_HOST", listen(t, d))
			var out strings.Builder
			args := append([]string{"__complete"}, strings.Split(test.args, " ")...)
			if code := Main(t.Context(), Config{}, args, nil, &out, io.Discard); code != 0 || out.String() != test.want {
				t.Errorf("%d:\n%s\nwant:\n%s", code, &out, test.want)
			}
		})
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out strings.Builder
		if code := Main(t.Context(), Config{}, []string{"completion", shell}, nil, &out, io.Discard); code != 0 || !strings.Contains(out.String(), "__complete") {
			t.Errorf("%s: %d", shell, code)
		}
	}
}
