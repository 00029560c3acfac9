package kube

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/pod"
)

// FuzzParse sees that no text, whatever it says, does more than be refused,
// and that what is taken can be written again.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds: ", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, s := range []string{
		minimal,
		`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"j"},"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}]}`,
		"apiVersion: v1\nkind: Pod\nmetadata: &m {name: &n p, labels: {<<: {a: b}}}\nspec: {containers: &c [{name: *n, image: i, args: &a [$(A), *n]}]}\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 64<<10 {
			return
		}
		file, err := Parse(text, testOptions)
		if err != nil {
			if file != nil || !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v: %v", file, err)
			}
			return
		}
		for _, p := range file.Pods[:1] {
			info := pod.PodInfo{Name: p.Name, Spec: p.Spec}
			for _, c := range p.Containers {
				s, err := c.Complete(ImageConfig{Cmd: []string{"x"}})
				if err != nil {
					return // runAsNonRoot
				}
				info.Containers = append(info.Containers, pod.Container{Name: c.Unique, Spec: s})
			}
			if _, err := Generate(info); err != nil {
				t.Error(err)
			}
		}
	})
}
