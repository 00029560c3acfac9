package kube

import (
	"os"
	"strings"
	"testing"
)

// TestManual sees that the manual's example is a pod file, and that the manual
// has the name of every field that is refused or has no effect.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/pod-files.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	f, err := Parse([]byte(example), testOptions)
	if err != nil || len(f.Pods) != 1 || len(f.Warnings) != 0 {
		t.Errorf("the example: %v, %+v", err, f)
	}
	for typ, rules := range fates {
		for name, rule := range rules {
			if (rule.fate == refused || rule.fate == hint) && !strings.Contains(string(text), name) {
				t.Errorf("docs/pod-files.md does not have %s of %s", name, typ)
			}
		}
	}
}
