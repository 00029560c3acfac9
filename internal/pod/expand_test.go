package pod

import (
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	known := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	tests := []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$(A)", "1"},
		{"x$(A)y$(A)", "x1y1"},
		{"$(B)", "$(A)"}, // values are not expanded again
		{"$(EMPTY)|", "|"},
		{"$(NONE)", "$(NONE)"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$$$$(A)", "$$(A)"},
		{"$A $", "$A $"},
		{"$(A", "$(A"},
		{"$($(A)", "$($(A)"}, // a reference to "$(A"
		{"cost: $5", "cost: $5"},
		{"$()", "$()"},
	}
	for _, tt := range tests {
		got, err := Expand(tt.in, known)
		if got != tt.want || err != nil {
			t.Errorf("Expand(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
		// In two steps it comes to the same, wherever A becomes known.
		early, err := ExpandEarly(tt.in, func(name string) (string, bool) {
			if name == "A" {
				return "$(A)", true
			}
			v, ok := vars[name]
			return EscapeRefs(v), ok
		})
		if err != nil {
			t.Errorf("ExpandEarly(%q): %v", tt.in, err)
		}
		got, err = Expand(early, func(name string) (string, bool) { return "1", name == "A" })
		if got != tt.want || err != nil {
			t.Errorf("Expand(%q) of ExpandEarly(%q) = %q, %v; want %q", early, tt.in, got, err, tt.want)
		}
		if got, _ := Expand(EscapeRefs(tt.in), known); got != tt.in {
			t.Errorf("Expand(EscapeRefs(%q)) = %q", tt.in, got)
		}
	}
	big := func(string) (string, bool) { return strings.Repeat("x", MaxExpanded), true }
	if _, err := Expand("$(A)$(A)", big); err == nil {
		t.Error("a value of 256 KiB was made")
	}
	if got, err := Expand("$(A)", big); len(got) != MaxExpanded || err != nil {
		t.Errorf("the longest value: %d bytes, %v", len(got), err)
	}
}
