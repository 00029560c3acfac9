package main

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

// sample has one result of each kind.
func sample() report {
	fast, slow := []float64{90, 100, 100, 110}, []float64{200, 190, 200, 300}
	return report{
		host: []string{"a machine"},
		sections: []section{
			{title: "`run`", unit: "ms", promise: ratio, results: []result{
				{contender: clone.promising(0.6), values: fast},
				{contender: warm.promising(0.4), values: fast},
				{contender: cold, missing: "a | b"},
				{contender: docker, values: slow},
			}},
			{title: "tail", unit: "ms", promise: tailRatio, results: []result{
				{contender: clone.promising(1.05), values: fast},
				{contender: docker.promising(2.5), values: slow},
			}},
			{title: "memory", unit: "MB", promise: absolute, results: []result{
				{contender: clone.promising(26), values: []float64{18}},
				{contender: cold.promising(26), values: []float64{114}},
			}},
			{title: "lost its reference", unit: "ms", promise: ratio, results: []result{
				{contender: clone.promising(0.6), values: fast},
				{contender: docker, missing: "no compiler"},
			}},
			{title: "another", unit: "ms", promise: ratio, results: []result{
				{contender: clone.promising(0.6), values: fast},
				{contender: docker, missing: "no compiler"},
				{contender: docker20, values: slow},
			}},
			{title: "nothing <at all>", unit: "ms", results: []result{{contender: docker, missing: "none"}}},
		},
	}
}

func TestMarkdown(t *testing.T) {
	got := sample().markdown()
	for _, want := range []string{
		"- a machine\n",
		"| **Hyper, clone** | 100 ms | 110 ms | 110 ms | 1.1 | 4 | 0.50 | ratio at most 0.60: ok |\n",
		"| **Hyper, warm pool** | 100 ms | 110 ms | 110 ms | 1.1 | 4 | 0.50 | ratio at most 0.40: **over** |\n",
		"| Hyper, cold boot | not available: a \\| b |||||||\n",
		"| Docker, bridge | 200 ms | 300 ms | 300 ms | 1.5 | 4 | 1.00 |  |\n",
		"| p99 / median at most 1.1: **over** |\n",
		"| p99 / median at most 2.5: ok |\n",
		"| **Hyper, clone** | 18 MB |  |  |  | 1 |  | at most 26 MB: ok |\n",
		"| Hyper, cold boot | 114 MB |  |  |  | 1 |  | at most 26 MB: **over** |\n",
		"|  | ratio at most 0.60: nothing to compare with |\n",
		"| Docker 20.10, bridge | 200 ms |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "| 0.50 | ratio at most 0.60: ok |"); n != 2 {
		t.Errorf("%d times within the promise, want it with the fallback too:\n%s", n, got)
	}
}

func TestSVG(t *testing.T) {
	got := sample().svg()
	bars, whiskers := 0, 0
	d := xml.NewDecoder(strings.NewReader(got))
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, got)
		}
		if e, ok := token.(xml.StartElement); ok {
			switch e.Name.Local {
			case "rect":
				bars++
			case "path":
				whiskers++
			}
		}
	}
	if bars != 10 || whiskers != 8 {
		t.Errorf("%d bars and %d whiskers, want 10 and 8\n%s", bars, whiskers, got)
	}
	for _, want := range []string{">Hyper, clone<", ">run (ms)<", "prefers-color-scheme: dark", ">200 ms<"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "nothing") {
		t.Errorf("a section without any value is plotted:\n%s", got)
	}
}
