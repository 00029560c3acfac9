package vm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestHello(t *testing.T) {
	out := must(t, "run", "--rm", "hello")
	if !strings.Contains(out, "Hyper") {
		t.Errorf("hello says %q", out)
	}
}

func TestExitCodes(t *testing.T) {
	img := pulled(t, "busybox")
	tests := []struct {
		name string
		args []string
		code int
		err  string
	}{
		{"own", []string{"run", "--rm", img, "sh", "-c", "exit 42"}, 42, ""},
		{"signal", []string{"run", "--rm", img, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, ""},
		{"not found", []string{"run", "--rm", img, "no-such-program"}, 127, "executable file not found in $PATH"},
		{"not executable", []string{"run", "--rm", img, "/etc/passwd"}, 126, "permission denied"},
		{"a directory", []string{"run", "--rm", img, "/etc"}, 126, ""},
		{"unknown image", []string{"run", "--rm", h.registry + "/no/such:image", "true"}, 125, "not found"},
		{"unknown flag", []string{"run", "--no-such-flag", img}, 125, "no-such-flag"},
		{"bad user", []string{"run", "--rm", "-u", "nobody-here", img, "true"}, 125, "unable to find user nobody-here"},
		{"too little memory", []string{"run", "--rm", "-m", "1m", img, "true"}, 125, "Minimum memory limit"},
		{"flag not there yet", []string{"run", "--rm", "-p", "80:80", img, "true"}, 125, "publish"},
		{"kernel that is none", []string{"run", "--rm", "--kernel", "/etc/passwd", img, "true"}, 125, "kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := hyper(t, tt.args...)
			if r.code != tt.code || !strings.Contains(r.err, tt.err) {
				t.Errorf("exit code %d, want %d; stderr %q, want %q in it", r.code, tt.code, r.err, tt.err)
			}
		})
	}
	if ps := must(t, "ps", "-aq"); ps != "" {
		t.Errorf("left behind: %s", ps)
	}
}

// 100 MB each way.
func TestStdioIsExact(t *testing.T) {
	img := pulled(t, "busybox")
	const size = 100 << 20
	data := make([]byte, size)
	rand.Read(data)
	sum := sha256.Sum256(data)
	want := hex.EncodeToString(sum[:])
	t.Run("in", func(t *testing.T) {
		r := hyperIn(t, bytes.NewReader(data), "run", "--rm", "-i", img, "sha256sum")
		if r.code != 0 || !strings.HasPrefix(r.out, want) {
			t.Errorf("code %d, sum %q, want %s; %s", r.code, r.out, want, r.err)
		}
	})
	t.Run("both", func(t *testing.T) {
		r := hyperIn(t, bytes.NewReader(data), "run", "--rm", "-i", "--log-driver", "none", img, "cat")
		if got := sha256.Sum256([]byte(r.out)); r.code != 0 || got != sum {
			t.Errorf("code %d, %d bytes came back of %d", r.code, len(r.out), len(data))
		}
	})
	t.Run("yes", func(t *testing.T) {
		r := hyper(t, "run", "--rm", "--log-driver", "none", img, "sh", "-c", fmt.Sprintf("yes | head -c %d", size))
		if len(r.out) != size || strings.Trim(r.out, "y\n") != "" {
			t.Errorf("%d bytes, want %d; %s", len(r.out), size, r.err)
		}
	})
}

func TestNginx(t *testing.T) {
	id := container(t, pulled(t, "nginx"))
	page := eventually(t, func() (string, bool) {
		r := hyper(t, "exec", id, "bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3`)
		return r.out + r.err, r.code == 0
	})
	if !strings.Contains(page, "nginx") {
		t.Errorf("page: %q", page)
	}
}

func TestRedis(t *testing.T) {
	id := container(t, pulled(t, "redis"))
	eventually(t, func() (string, bool) {
		r := hyper(t, "exec", id, "redis-cli", "ping")
		return r.out + r.err, strings.Contains(r.out, "PONG")
	})
	must(t, "exec", id, "redis-cli", "set", "k", "v")
	if v := must(t, "exec", id, "redis-cli", "get", "k"); v != "v" {
		t.Errorf("got %q", v)
	}
}

func TestPostgresKeepsItsData(t *testing.T) {
	id := container(t, "-e", "POSTGRES_PASSWORD=x", pulled(t, "postgres"))
	ready := func() {
		eventually(t, func() (string, bool) {
			r := hyper(t, "exec", "-u", "postgres", id, "psql", "-h", "127.0.0.1", "-U", "postgres", "-tAc", "select 41+1")
			return r.out + r.err, strings.TrimSpace(r.out) == "42"
		})
	}
	ready()
	must(t, "exec", "-u", "postgres", id, "psql", "-c", "begin; create table t (n int); insert into t select generate_series(1,1000); commit")
	must(t, "stop", id)
	must(t, "start", id)
	ready()
	if n := must(t, "exec", "-u", "postgres", id, "psql", "-tAc", "select sum(n) from t"); strings.TrimSpace(n) != "500500" {
		t.Errorf("sum %q", n)
	}
}

func TestPythonFromStdin(t *testing.T) {
	script := "import sys\nprint(sum(range(10)))\nprint('err', file=sys.stderr)\n"
	r := hyperIn(t, strings.NewReader(script), "run", "--rm", "-i", pulled(t, "python3"), "python3", "-")
	if r.out != "45\n" || !strings.Contains(r.err, "err") || r.code != 0 {
		t.Errorf("%+v", r)
	}
}

// eventually calls f until it says yes; the container may still be starting.
func eventually(t *testing.T, f func() (string, bool)) string {
	t.Helper()
	var last string
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		out, ok := f()
		if ok {
			return out
		}
		last = out
	}
	t.Fatalf("never ready, last: %s", last)
	return ""
}
