package vm

import (
	"fmt"
	"strings"
	"testing"
)

// podFile runs the pods of a file of testdata, waits until they are ready and
// removes them, by these names, at the end of the test.
func podFile(t *testing.T, file string, names ...string) {
	t.Helper()
	for _, name := range names {
		t.Cleanup(func() { cleanup(t, "pod", "rm", "-f", name) })
	}
	must(t, "pod", "run", "-f", "testdata/"+file, "--wait", "--wait-timeout", "150")
}

// newPod makes a pod without containers until the end of the test.
func newPod(t *testing.T, name string, args ...string) {
	t.Helper()
	must(t, append([]string{"pod", "create", "--name", name}, args...)...)
	t.Cleanup(func() { cleanup(t, "pod", "rm", "-f", name) })
}

// sh runs a shell command in a container and returns what it printed.
func sh(t *testing.T, container, script string) string {
	t.Helper()
	return must(t, "exec", container, "sh", "-c", script)
}

// inspect returns what a template makes of a container.
func inspect(t *testing.T, container, format string) string {
	t.Helper()
	return must(t, "inspect", "--format", format, container)
}

// life is which process of a container runs, since when and how often it was
// restarted: the same as long as nobody touches it.
func life(t *testing.T, container string) string {
	t.Helper()
	return inspect(t, container, "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}")
}

// states lists the containers of a pod with what the template says of each.
func states(t *testing.T, pod, format string) string {
	t.Helper()
	return must(t, "pod", "inspect", "--format", "{{range .Containers}}{{.Name}} "+format+"\n{{end}}", pod)
}

// until waits for a command to print what is wanted.
func until(t *testing.T, want string, args ...string) {
	t.Helper()
	eventually(t, func() (string, bool) {
		r := hyper(t, args...)
		return fmt.Sprintf("hyper %s: %q, want %q; %s", strings.Join(args, " "), r.out, want, r.err), strings.TrimSpace(r.out) == want
	})
}

// checks compares what commands in containers print.
func checks(t *testing.T, all [][3]string) {
	t.Helper()
	for _, c := range all {
		if got := hyper(t, "exec", c[0], "sh", "-c", c[1]); strings.TrimSpace(got.out) != c[2] {
			t.Errorf("%s: %s: %q, want %q; %s", c[0], c[1], got.out, c[2], got.err)
		}
	}
}

// nginx before a Python program, with all that a pod file can give them.
func TestPodFile(t *testing.T) {
	for _, image := range []string{"busybox", "nginx", "python3"} {
		pulled(t, image)
	}
	podFile(t, "web.yaml", "web")
	if got, want := states(t, "web", "{{.Role}} {{.Status}} {{.Ready}} {{.ExitCode}} {{.RestartCount}}"),
		"web-setup init exited false 0 0\nweb-nginx main running true 0 0\nweb-app main running true 0 0"; got != want {
		t.Errorf("containers:\n%s\nwant:\n%s", got, want)
	}
	ip := must(t, "pod", "inspect", "--format", "{{.Network.Address}}", "web")
	const fetch = "python3 -c 'import sys, urllib.request as u\nfor a in sys.argv[1:]: print(u.urlopen(\"http://\" + a).read().decode().strip())' "
	checks(t, [][3]string{
		// Over localhost there and back, to a file that the init container made.
		{"web-app", fetch + "localhost/app $POD_IP/page.txt localhost:8000/page", "hello world from " + ip + "\nmade by init\nmade by init"},
		// Variables.
		{"web-app", "echo $POD_IP $POD_NAME $WHO $DSN", ip + " web world user:s3cret@db"},
		{"web-app", "hostname", "web"},
		// Users and groups. Files of volumes are of fsGroup, which may read them.
		{"web-app", "echo $(id -u) $(id -g) $(id -G)", "1234 1235 1235 2000"},
		{"web-app", "stat -c '%u %g' /proc/1", "1234 1235"},
		{"web-app", "stat -L -c '%a %u %g %s' /conf/who /keys/db/pass", "440 0 2000 5\n440 0 2000 6"},
		{"web-app", "find /conf/ /keys/ -type f | sort", "/conf/app.py\n/conf/site.conf\n/conf/who\n/keys/db/pass"},
		{"web-app", "cat /keys/db/pass; cat /about/labels", `s3cretapp="shop"`},
		{"web-app", "touch /site/new && stat -c '%u %g' /site/new", "1234 2000"},
		// What is read-only is.
		{"web-app", "for f in /x /conf/x /keys/x; do touch $f 2>&1 | sed 's/.*: //'; done", strings.Repeat("Read-only file system\n", 2) + "Read-only file system"},
		{"web-nginx", "touch /srv/x 2>&1 | sed 's/.*: //'; ls /srv", "Read-only file system\nnew\npage.txt"},
		{"web-nginx", "head -1 /etc/nginx/sites-enabled/default; ls /scratch /keys 2>&1 | wc -l", "server {\n2"},
		// Sizes.
		{"web-app", "df -k /scratch | tail -1 | tr -s ' ' | cut -d' ' -f2", "4096"},
		{"web-app", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max", "134217728\n150000 100000"},
		{"web-app", "cat /scratch/hooks", "started"},
	})
	if out := must(t, "logs", "web-setup"); !strings.HasSuffix(out, "2000") {
		t.Errorf("groups of the init container: %q", out)
	}
	// Memory and files of a pod that is stopped: the one is gone, the other is there.
	must(t, "pod", "stop", "web")
	if got := must(t, "why", "--format", "{{.Cause}}", "web-app"); got != "stopped" {
		t.Errorf("cause %q", got)
	}
	must(t, "pod", "start", "--wait", "web")
	checks(t, [][3]string{
		{"web-app", "cat /scratch/hooks /site/hooks", "started\nstopping"},
		{"web-app", "cat /site/page.txt", "made by init\nmade by init"},
		{"web-app", "echo $POD_IP", ip},
	})
}

// A database and its client share a directory, and the pod's shared memory.
func TestPodPostgres(t *testing.T) {
	pulled(t, "postgres")
	podFile(t, "postgres.yaml", "pg")
	const attach = `perl -e '$id = shmget(77, 64, %s) // die "$!\n"; %s'`
	checks(t, [][3]string{
		{"pg-client", "psql -h /socket -U postgres -tAc 'create table t (n int); insert into t select generate_series(1, 1000)' && psql -h /socket -U postgres -tAc 'select sum(n) from t'", "CREATE TABLE\nINSERT 0 1000\n500500"},
		{"pg-client", "psql -h localhost -U postgres -tAc 'select count(*) from t'", "1000"},
		// What a database of its own keeps there is seen by its neighbour.
		{"pg-client", "ls /dev/shm | grep -c PostgreSQL; grep -c ' 600 ' /proc/sysvipc/shm", "2\n1"},
		{"pg-client", "echo from the client > /dev/shm/note", ""},
		{"pg-db", "cat /dev/shm/note", "from the client"},
		{"pg-client", fmt.Sprintf(attach, "0666 | 01000", `shmwrite($id, "over shared memory", 0, 18)`), ""},
		{"pg-db", fmt.Sprintf(attach, "0666", `shmread($id, $b, 0, 18); print $b`), "over shared memory"},
		// Files and processes are each one's own.
		{"pg-client", "ls $PGDATA 2>/dev/null | wc -l; cat /proc/1/comm", "0\nsleep"},
		{"pg-db", "cat /proc/1/comm; pgrep sleep", "postgres"},
	})
}

// A sidecar stays while its main container is restarted, and goes when that has done.
func TestPodSidecar(t *testing.T) {
	pulled(t, "busybox")
	podFile(t, "sidecar.yaml", "kept")
	side, main := life(t, "kept-side"), life(t, "kept-main")
	ran := func(times string) { until(t, times, "exec", "kept-side", "sh", "-c", "grep -c run /data/runs") }
	ran("1")
	sh(t, "kept-side", "echo I am sick > /data/sick")
	until(t, "kept-side 0 running\nkept-main 1 running", "pod", "inspect", "--format",
		"{{range .Containers}}{{.Name}} {{.RestartCount}} {{.Status}}\n{{end}}", "kept")
	if now := life(t, "kept-side"); now != side {
		t.Errorf("the sidecar is %s, was %s", now, side)
	}
	if now := life(t, "kept-main"); now == main {
		t.Errorf("main is still %s", now)
	}
	ran("2")
	// It has done its work: nothing of the pod goes on running.
	sh(t, "kept-side", "touch /data/done")
	until(t, "exited", "pod", "inspect", "--format", "{{.Status}}", "kept")
	if got, want := states(t, "kept", "{{.Status}} {{.RestartCount}}"), "kept-side exited 0\nkept-main exited 1"; got != want {
		t.Errorf("at the end: %q, want %q", got, want)
	}
	if got := must(t, "why", "--format", "{{.Cause}} {{.Detail}}", "kept-side"); !strings.HasPrefix(got, "stopped") {
		t.Errorf("why the sidecar ended: %q", got)
	}
	if got := must(t, "why", "--format", "{{.Cause}}", "kept-main"); got != "exit" {
		t.Errorf("why main ended: %q", got)
	}
}
