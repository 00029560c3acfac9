package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

func TestConvert(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 700 MB")
	}
	layer := filepath.Join(t.TempDir(), "layer.tar")
	if err := writeLayer(layer); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-convert", layer}, &out, &out); err != nil {
		t.Fatal(err)
	}
	var got converted
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Ms <= 0 || got.PeakM <= 0 {
		t.Errorf("convert says %q: %v", out.String(), err)
	}
	t.Logf("%+v", got)
}

func TestMarkdown(t *testing.T) {
	got := report{
		host: []string{"a machine"},
		rows: []row{
			{"fast", "ms", 60, []float64{3, 1, 2}},
			{"slow", "ms", 60, []float64{100, 50, 70, 80, 90, 70, 70, 70, 70, 70}},
			{"unknown", "MB", 4, nil},
		},
	}.markdown()
	for _, want := range []string{
		"- a machine\n",
		"| fast | 60 ms | 2.00 ms | 3.00 ms | 3 | ok |\n",
		"| slow | 60 ms | 70 ms | 100 ms | 10 | **over** |\n",
		"| unknown | 4.00 MB | - | - | 0 | not measured |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
