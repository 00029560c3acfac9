package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fileOf is a pod file of one pod.
func fileOf(t *testing.T, pod string, containers ...string) string {
	t.Helper()
	return writeFile(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: "+pod+"}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - "+strings.Join(containers, "\n  - ")+"\n")
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Pod files that can't be run are refused, and leave nothing.
func TestPodBadInput(t *testing.T) {
	pulled(t, "busybox")
	const head = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n"
	ok := func(name string, more ...string) string {
		return fmt.Sprintf("{name: %s, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']%s}", name, strings.Join(more, ""))
	}
	newPod(t, "there")
	must(t, "run", "-d", "--pod", "there", "--name", "bad-taken", "busybox", "sleep", "1000000")
	for _, tt := range []struct{ name, text, want string }{
		{"no YAML", head + "  containers:\n  - name: a\n   image: b\n", "pod.yaml:7: "},
		{"unknown field", head + "  containers:\n  - name: a\n    imagee: b\n    image: busybox\n", "pod.yaml:7: spec.containers[0].imagee: unknown field"},
		{"wrong type", head + "  containers:\n  - name: a\n    image: busybox\n    command: sleep\n", "pod.yaml:8: spec.containers[0].command"},
		{"not supported", head + "  hostNetwork: true\n  containers:\n  - " + ok("a") + "\n", "pod.yaml:5: spec.hostNetwork: not supported"},
		{"no volume", head + "  containers:\n  - " + ok("a", ", volumeMounts: [{name: nope, mountPath: /x}]") + "\n", "pod.yaml:6: spec.containers[0].volumeMounts[0].name"},
		{"a container's name twice", head + "  containers:\n  - " + ok("a") + "\n  - " + ok("a") + "\n", "pod.yaml:7: spec.containers[1].name"},
		{"a pod's name twice", strings.Repeat(head+"  containers:\n  - "+ok("a")+"\n---\n", 2), "pod.yaml:"},
		{"a pod that is there", strings.Replace(head, "bad", "there", 1) + "  containers:\n  - " + ok("a") + "\n", "pod there exists already"},
		{"a container that is there", head + "  containers:\n  - " + ok("a") + "\n  - " + ok("taken") + "\n", `"/bad-taken" is already in use`},
		{"too much memory", head + "  containers:\n  - " + ok("a") + "\n  - " + ok("b", ", resources: {limits: {memory: 64Ti}}") + "\n", "pod bad: its containers may use"},
		{"too much memory together", head + "  containers:\n  - " + ok("a", ", resources: {limits: {memory: 600Gi}}") + "\n  - " + ok("b", ", resources: {limits: {memory: 600Gi}}") + "\n", "the largest VM has room for"},
		{"too many CPUs", head + "  containers:\n  - " + ok("a", ", resources: {limits: {cpu: 5000}}") + "\n", "CPUs"},
		{"requests above limits", head + "  containers:\n  - " + ok("a", ", resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}") + "\n", "pod.yaml:6: spec.containers[0].resources"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused(t, 125, tt.want, "pod", "run", "-f", writeFile(t, tt.text))
		})
	}
	t.Run("an image of five is missing", func(t *testing.T) {
		missing := strings.Replace(ok("c"), "image: busybox", "image: "+h.registry+"/no/such:image", 1)
		r := refused(t, 125, "container c: pull "+h.registry+"/no/such:image", "pod", "run", "-f", fileOf(t, "five", ok("a"), ok("b"), missing, ok("d"), ok("e")))
		if !strings.Contains(r.err, "not found") {
			t.Errorf("it does not say why: %q", r.err)
		}
		must(t, "pod", "run", "--start=false", "-f", fileOf(t, "five", ok("a"), ok("b"))) // nothing is in the way
		t.Cleanup(func() { cleanup(t, "pod", "rm", "-f", "five") })
		// A file that is refused replaces nothing.
		id := must(t, "pod", "inspect", "--format", "{{.ID}}", "five")
		refused(t, 125, "no/such:image", "pod", "run", "--replace", "-f", fileOf(t, "five", ok("a"), missing))
		if now := must(t, "pod", "inspect", "--format", "{{.ID}}", "five"); now != id {
			t.Errorf("the pod is %s, was %s", now, id)
		}
	})
	t.Run("the second of two pods", func(t *testing.T) {
		text := head + "  containers:\n  - " + ok("a") + "\n---\n" + strings.Replace(head, "bad", "worse", 1) + "  containers:\n  - " + ok("b", ", resources: {limits: {memory: 64Ti}}") + "\n"
		refused(t, 125, "pod worse: its containers may use", "pod", "run", "-f", writeFile(t, text))
	})
	for _, args := range [][]string{
		{"pod", "create", "--name", "there"},
		{"pod", "create", "--name", "x/y"},
		{"pod", "create", "--name", "big", "--memory", "64t"},
		{"pod", "create", "--name", "big", "--cpus", "5000"},
		{"run", "--pod", "nope", "busybox"},
		{"run", "--pod", "there", "--name", "bad-taken", "busybox"},
		{"run", "--pod", "there", "--hostname", "other", "busybox"},
		{"run", "--pod", "there", "--network", "none", "busybox"},
		{"run", "--rm", "--pod", "there", "-m", "64g", "busybox"},
	} {
		refused(t, 125, "hyper: cannot ", args...)
	}
	if got := sh(t, "bad-taken", "echo well"); got != "well" {
		t.Errorf("who was there says %q", got)
	}
}

// A pod that does not become as it should says why, and stays to be looked at.
func TestPodNotReady(t *testing.T) {
	pulled(t, "busybox")
	const c = "{name: %s, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, '%s']%s}"
	tests := []struct {
		pod, script, more string
		fast              bool // it is known at once
		want, why         string
	}{
		{"never-ready", "sleep 1000", ", readinessProbe: {exec: {command: [sh, -c, echo not yet; exit 3]}, periodSeconds: 1, timeoutSeconds: 10}", false,
			"container never-ready-b: its probe says: readiness: sh exited with code 3: not yet", "running running"},
		{"never-starts", "sleep 1000", ", startupProbe: {tcpSocket: {port: 81}, periodSeconds: 1, failureThreshold: 1}", false,
			"container never-starts-b: it was killed: startup: ", "restarting probe"},
		{"fails", "exit 3", "\n  restartPolicy: Never\n  initContainers:\n  - {name: i, image: busybox, imagePullPolicy: IfNotPresent, command: ['false']}", true,
			"container fails-i: it exited with code 1", "created created"},
	}
	for _, tt := range tests {
		t.Run(tt.pod, func(t *testing.T) {
			t.Cleanup(func() { cleanup(t, "pod", "rm", "-f", tt.pod) })
			probe, rest, _ := strings.Cut(tt.more, "\n")
			file := fileOf(t, tt.pod, fmt.Sprintf(c, "a", "sleep 1000", ""), fmt.Sprintf(c, "b", tt.script, probe)+"\n"+rest)
			begin := time.Now()
			timeout := 6
			if tt.fast {
				timeout = 100
			}
			r := hyper(t, "pod", "run", "-f", file, "--wait", "--wait-timeout", fmt.Sprint(timeout))
			if r.code != 125 || !strings.Contains(r.err, "pod "+tt.pod+" is not ready: "+tt.want) {
				t.Errorf("%+v, want code 125 and %q", r, tt.want)
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := must(t, "why", "--format", "{{.Status}} {{.Cause}}", tt.pod+"-b"); got != tt.why {
				t.Errorf("why: %q, want %q", got, tt.why)
			}
			if got := inspect(t, tt.pod+"-a", "{{.State.Status}}"); (got == "running") == tt.fast {
				t.Errorf("its neighbour is %s", got)
			}
		})
	}
}
