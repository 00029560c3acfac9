package runflags

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

func parse(line string) (client.ContainerCreateOptions, error) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	f := Add(fs)
	if err := fs.Parse(strings.Fields(line)); err != nil {
		return client.ContainerCreateOptions{}, err
	}
	return f.Request(fs.Arg(0), fs.Args()[1:])
}

// TestRequest looks at single fields; that the whole is what Docker sends is
// tested in package cli, where docker is at hand.
func TestRequest(t *testing.T) {
	t.Setenv("FROM_ENV", "here")
	tests := []struct{ line, field, want string }{
		{"x a -b --c", "Config.Cmd", `["a","-b","--c"]`},
		{"x", "Config.Cmd", `null`},
		{"-e A=1 -e FROM_ENV -e NOT_SET_ANYWHERE x", "Config.Env", `["A=1","FROM_ENV=here","NOT_SET_ANYWHERE"]`},
		{"-it x", "Config.StdinOnce", `true`},
		{"-a stdout x", "Config.AttachStderr", `false`},
		{"--entrypoint= x", "Config.Entrypoint", `[""]`},
		{"--stop-timeout 0 x", "Config.StopTimeout", `0`},
		{"x", "Config.StopTimeout", ``},
		{"-m 1.5g x", "HostConfig.Memory", `1610612736`},
		{"--memory-swap -1 x", "HostConfig.MemorySwap", `-1`},
		{"--cpus 0.000000001 x", "HostConfig.NanoCpus", `1`},
		{"--kernel /boot/vmlinux x", "HostConfig.Annotations", `{"run.hyper.kernel":"/boot/vmlinux"}`},
		{"--pod web x", "HostConfig.Annotations", `{"hyper.pod":"web"}`},
		{"--pod web --kernel stock x", "HostConfig.Annotations", `{"hyper.pod":"web","run.hyper.kernel":"stock"}`},
		{"--ipc container:a x", "HostConfig.IpcMode", `"container:a"`},
		{"--pid pod x", "HostConfig.PidMode", `"pod"`},
		{"--restart on-failure:3 x", "HostConfig.RestartPolicy", `{"Name":"on-failure","MaximumRetryCount":3}`},
		{"--restart= x", "HostConfig.RestartPolicy", `{"Name":"no","MaximumRetryCount":0}`},
		{"--device-read-bps /:1mb --device-read-bps /dev/sda:2 x", "HostConfig.BlkioDeviceReadBps", `[{"Path":"/","Rate":1048576},{"Path":"/dev/sda","Rate":2}]`},
		{"--device-write-iops /:100 x", "HostConfig.BlkioDeviceWriteIOps", `[{"Path":"/","Rate":100}]`},
		{"--storage-opt size=20G x", "HostConfig.StorageOpt", `{"size":"20G"}`},
		{"--tmpfs /t:size=1m x", "HostConfig.Tmpfs", `{"/t":"size=1m"}`},
		{"--add-host a=[::1] x", "HostConfig.ExtraHosts", `["a:::1"]`},
		{"--ulimit nofile=1:2 x", "HostConfig.Ulimits", `[{"Name":"nofile","Hard":2,"Soft":1}]`},
		{"x", "HostConfig.NetworkMode", `"default"`},
		{"--network none x", "HostConfig.NetworkMode", `"none"`},
		{"x", "HostConfig.Init", ``},
		{"--init x", "HostConfig.Init", `true`},
		{"--security-opt systempaths=unconfined x", "HostConfig.MaskedPaths", `[]`},
		{"x", "HostConfig.MaskedPaths", `null`},
		{"--restart no -P=false --cgroupns private x", "HostConfig.CgroupnsMode", `""`},
	}
	for _, test := range tests {
		t.Run(test.line, func(t *testing.T) {
			req, err := parse(test.line)
			if err != nil {
				t.Fatal(err)
			}
			var v any = req
			data, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			raw := json.RawMessage(data)
			for name := range strings.SplitSeq(test.field, ".") {
				var m map[string]json.RawMessage
				if err := json.Unmarshal(raw, &m); err != nil {
					t.Fatal(err)
				}
				raw = m[name]
			}
			if string(raw) != test.want {
				t.Errorf("%s = %s, want %s", test.field, raw, test.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	tests := []struct{ line, want string }{
		{"-p 80:80 x", "--publish is not supported yet"},
		{"-P x", "--publish-all is not supported yet"},
		{"-v /a:/b x", "--volume is not supported yet"},
		{"--mount type=bind,src=/a,dst=/b x", "--mount is not supported yet"},
		{"--restart :1 x", "invalid restart policy format: no policy provided before colon"},
		{"--restart on-failure:x x", "invalid restart policy format: maximum retry count must be an integer"},
		{"--restart always --rm x", "conflicting options: cannot specify both --restart and --rm"},
		{"--device-read-bps / x", `invalid argument "/" for "--device-read-bps" flag: bad format: /`},
		{"--device-read-iops /:1k x", `invalid argument "/:1k" for "--device-read-iops" flag: invalid rate for device: /:1k: must be PATH:NUMBER, a positive number`},
		{"--device-write-bps /:-1 x", `invalid argument "/:-1" for "--device-write-bps" flag: invalid rate for device: /:-1: must be PATH:NUMBER, a positive number`},
		{"--link a x", "--link is not supported yet"},
		{"--gpus all x", "--gpus is not supported yet"},
		{"--health-cmd true x", "--health-cmd is not supported yet"},
		{"--network a --network b x", "--network, more than once, is not supported yet"},
		{"--network name=a,ip=1.2.3.4 x", "--network with options is not supported yet"},
		{"--disable-content-trust=false x", "--disable-content-trust=false is not supported yet"},
		{"-m 5x x", `invalid argument "5x" for "-m, --memory" flag: invalid suffix: 'x'`},
		{"--cpus a x", `invalid argument "a" for "--cpus" flag: "a" is not a number`},
		{"--cpus 0.0000000001 x", `invalid argument "0.0000000001" for "--cpus" flag: more than 9 decimal places, or too large`},
		{"-e =1 x", `invalid argument "=1" for "-e, --env" flag: invalid environment variable: =1`},
		{"-a foo x", `invalid argument "foo" for "-a, --attach" flag: valid streams are STDIN, STDOUT and STDERR`},
		{"--add-host a x", `invalid argument "a" for "--add-host" flag: bad format for add-host: "a"`},
		{"--dns a x", `invalid argument "a" for "--dns" flag: IP address is not correctly formatted: a`},
		{"--dns-search -a x", `invalid argument "-a" for "--dns-search" flag: -a is not a valid domain`},
		{"--sysctl a x", `invalid argument "a" for "--sysctl" flag: sysctl 'a' is not NAME=VALUE`},
		{"--ulimit a x", `invalid argument "a" for "--ulimit" flag: invalid ulimit argument: a`},
		{"--log-driver none --log-opt a=b x", "--log-opt: the log driver none has no options"},
		{"--storage-opt a x", `--storage-opt: "a" is not NAME=VALUE`},
		{"--security-opt seccomp x", `invalid --security-opt: "seccomp"`},
		{"--env-file /nonexistent x", "--env-file: open /nonexistent: no such file or directory"},
		{"--nonsense x", "unknown flag: --nonsense"},
	}
	for _, test := range tests {
		t.Run(test.line, func(t *testing.T) {
			_, err := parse(test.line)
			if err == nil || err.Error() != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

// Every flag of the table is refused when it asks for something.
func TestUnsupportedTable(t *testing.T) {
	for _, u := range unsupported {
		line := "--" + u.name + "=1 x"
		if u.kind == "bool" {
			line = "--" + u.name + " x"
		}
		var refused ErrUnsupported
		if _, err := parse(line); !errors.As(err, &refused) || refused.Flag != u.name {
			t.Errorf("%s: %v", line, err)
		}
		for _, same := range u.same {
			if _, err := parse("--" + u.name + "=" + same + " x"); err != nil {
				t.Errorf("--%s=%s: %v", u.name, same, err)
			}
		}
	}
}

func TestUpdate(t *testing.T) {
	for _, tt := range []struct{ line, want, err string }{
		{"-m 64m --memory-swap -1 --cpus .5", `{"Resources":{"Memory":67108864,"MemorySwap":-1,"NanoCpus":500000000}}`, ""},
		{"--pids-limit -1 --restart on-failure:2", `{"Resources":{"PidsLimit":-1},"RestartPolicy":{"MaximumRetryCount":2,"Name":"on-failure"}}`, ""},
		{"-c 2 --cpuset-cpus 0 --memory-reservation 1k", `{"Resources":{"CpuShares":2,"CpusetCpus":"0","MemoryReservation":1024}}`, ""},
		{"--blkio-weight 0 --cpu-period 5 --cpu-quota 6", `{"Resources":{"CpuPeriod":5,"CpuQuota":6}}`, ""},
		{"--cpuset-mems 1", "", "--cpuset-mems is not supported yet"},
		{"--restart on-failure:x", "", "invalid restart policy format: maximum retry count must be an integer"},
		{"", "", "you must provide one or more flags when using this command"},
		{"--ulimit a=1", "", "unknown flag: --ulimit"},
	} {
		fs := pflag.NewFlagSet("update", pflag.ContinueOnError)
		u := AddUpdate(fs)
		err := fs.Parse(strings.Fields(tt.line))
		var req client.ContainerUpdateOptions
		if err == nil {
			req, err = u.Request()
		}
		if err != nil {
			if err.Error() != tt.err {
				t.Errorf("%s: %v", tt.line, err)
			}
			continue
		}
		if got := nonEmpty(t, req); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.line, got, tt.want)
		}
	}
}

func TestPod(t *testing.T) {
	for _, tt := range []struct{ line, want, err string }{
		{"", `{"spec":{"network":"bridge"}}`, ""},
		{"--name web -m 256m --cpus 1.5 --kernel stock --kernel-arg quiet --kernel-arg loglevel=7 --shm-size 1m",
			`{"name":"web","spec":{"kernel":"stock","kernelArgs":["quiet","loglevel=7"],"memoryBytes":268435456,"nanoCPUs":1500000000,"network":"bridge","shmBytes":1048576}}`, ""},
		{"-h h --domainname d --add-host a=[::1] --dns 1.1.1.1 --dns-search x.org --dns-option ndots:2 --network none",
			`{"spec":{"dns":["1.1.1.1"],"dnsOptions":["ndots:2"],"dnsSearch":["x.org"],"domainname":"d","extraHosts":["a:::1"],"hostname":"h","network":"none"}}`, ""},
		{"-l a=1 --annotation b=2 --sysctl c=3 --share-pid --rm --persist --stop-timeout 0",
			`{"spec":{"annotations":{"b":"2"},"autoRemove":true,"labels":{"a":"1"},"network":"bridge","persist":true,"sharePID":true,"stopTimeout":0,"sysctls":{"c":"3"}}}`, ""},
		{"--label-file /nonexistent", "", "--label-file: open /nonexistent: no such file or directory"},
		{"-m 5x", "", `invalid argument "5x" for "-m, --memory" flag: invalid suffix: 'x'`},
	} {
		fs := pflag.NewFlagSet("create", pflag.ContinueOnError)
		p := AddPod(fs)
		err := fs.Parse(strings.Fields(tt.line))
		var got []byte
		if err == nil {
			req, e := p.Request()
			if err = e; err == nil {
				got = []byte(nonEmpty(t, req))
			}
		}
		if err != nil && err.Error() != tt.err || err == nil && string(got) != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.line, got, err, tt.want)
		}
	}
}

// nonEmpty is v as JSON with its keys in order, without what is empty.
func nonEmpty(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	for k := range m {
		prune(m, k)
	}
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func prune(m map[string]any, key string) {
	switch v := m[key].(type) {
	case map[string]any:
		for k := range v {
			if v[k] != float64(0) || k != "stopTimeout" {
				prune(v, k)
			}
		}
		if len(v) == 0 {
			delete(m, key)
		}
	case string:
		if v == "" {
			delete(m, key)
		}
	case float64:
		if v == 0 {
			delete(m, key)
		}
	case bool:
		if !v {
			delete(m, key)
		}
	case nil:
		delete(m, key)
	case []any:
		if len(v) == 0 {
			delete(m, key)
		}
	}
}

func TestReadEnv(t *testing.T) {
	t.Setenv("FROM_ENV", "here")
	tests := []struct {
		name, text string
		want       []string
		err        string
	}{
		{name: "plain", text: "A=1\nB=2\n", want: []string{"A=1", "B=2"}},
		{name: "no line end", text: "A=1", want: []string{"A=1"}},
		{name: "comments and space", text: "# c\n\n  \t\n  A= x y \n#B=1\n", want: []string{"A= x y "}},
		{name: "hash in a value", text: "A=1 # not a comment\n", want: []string{"A=1 # not a comment"}},
		{name: "quotes stay", text: "A=\"1\"\nB='2'\n", want: []string{`A="1"`, "B='2'"}},
		{name: "equals in a value", text: "A==b=c\n", want: []string{"A==b=c"}},
		{name: "empty value", text: "A=\n", want: []string{"A="}},
		{name: "carriage return", text: "A=1\r\nB=2\r\n", want: []string{"A=1", "B=2"}},
		{name: "byte order mark", text: "\uFEFFA=1\n", want: []string{"A=1"}},
		{name: "bare names", text: "FROM_ENV\nNOT_SET_ANYWHERE\n", want: []string{"FROM_ENV=here"}},
		{name: "no name", text: "=1\n", err: "line 1: no variable name on line '=1'"},
		{name: "space in a name", text: "A B=1\n", err: "line 1: variable 'A B' contains whitespaces"},
		{name: "space after a name", text: "A =1\n", err: "line 1: variable 'A ' contains whitespaces"},
		{name: "not UTF-8", text: "A=1\n\xff=1\n", err: "line 2 is not UTF-8"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "env")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadEnv([]string{path}, []string{"LAST=1"})
			if test.err != "" {
				if err == nil || err.Error() != path+": "+test.err {
					t.Errorf("got %v, want %s", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(append(test.want, "LAST=1"), got); d != "" {
				t.Errorf("want (-), got (+): %s", d)
			}
		})
	}
}

func FuzzParseFile(f *testing.F) {
	for _, s := range []string{"A=1\n# c\n B=2", "\uFEFFA\n", "=\n", "A B\n", "\xff", "A=\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := parseFile(strings.NewReader(text), nil)
		if err != nil {
			return
		}
		for _, l := range lines {
			name, _, _ := strings.Cut(l, "=")
			if name == "" || strings.ContainsAny(name, " \t\n") {
				t.Errorf("%q gives the name %q", text, name)
			}
		}
	})
}
