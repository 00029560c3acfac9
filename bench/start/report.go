package main

import (
	"fmt"
	"strings"

	"github.com/hyper-run/hyper/bench/internal/stats"
)

// A result is what one contender did.
type result struct {
	contender
	values  []float64 // in the section's unit; none: missing says why
	missing string
}

// A promise is what a contender's limit limits.
type promise int

const (
	ratio     promise = iota // its median over the reference's
	tailRatio                // its p99 over its own median
	absolute                 // its median
)

// A section is one thing measured, and a table.
type section struct {
	title, unit string
	promise     promise
	to          string // label of what ratios are to; "": reference or fallback
	results     []result
}

type report struct {
	host     []string // lines about the machine and the products
	sections []section
}

// reference is the median that ratios are to, 0 when there is none.
func (s section) reference() float64 {
	labels := []string{reference, fallback}
	if s.to != "" {
		labels = []string{s.to}
	}
	for _, label := range labels {
		for _, r := range s.results {
			if r.label == label && len(r.values) > 0 {
				return stats.Quantile(r.values, 0.5)
			}
		}
	}
	return 0
}

// markdown is the report, written by make bench-start to bench/start/results.md.
func (r report) markdown() string {
	var b strings.Builder
	b.WriteString("# How fast containers start\n\nBy `make bench-start`. Products took turns, run by run. \"Ratio\" is to the median of Docker's default network in the same table, or else to the line with 1.00.\n\n")
	for _, line := range r.host {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	b.WriteString("\n![medians, with p90](start.svg)\n")
	for _, s := range r.sections {
		s.table(&b)
	}
	return b.String()
}

func (s section) table(b *strings.Builder) {
	fmt.Fprintf(b, "\n## %s\n\n| | median | p90 | p99 | p99 / median | runs | ratio | promised |\n|---|---|---|---|---|---|---|---|\n", s.title)
	for _, r := range s.results {
		if len(r.values) == 0 {
			fmt.Fprintf(b, "| %s | not available: %s |||||||\n", r.label, strings.ReplaceAll(r.missing, "|", "\\|"))
			continue
		}
		median := stats.Quantile(r.values, 0.5)
		p90, p99, spread := "", "", ""
		if len(r.values) > 1 {
			tail := stats.Quantile(r.values, 0.99)
			p90, p99, spread = stats.Format(stats.Quantile(r.values, 0.9), s.unit), stats.Format(tail, s.unit), fmt.Sprintf("%.1f", tail/median)
		}
		over := ""
		if ref := s.reference(); ref > 0 {
			over = fmt.Sprintf("%.2f", median/ref)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %d | %s | %s |\n",
			r.label, stats.Format(median, s.unit), p90, p99, spread, len(r.values), over, s.verdict(r))
	}
}

// verdict says what was promised of r, and whether it holds.
func (s section) verdict(r result) string {
	if r.limit == 0 {
		return ""
	}
	got, text := stats.Quantile(r.values, 0.5), ""
	switch s.promise {
	case ratio:
		ref := s.reference()
		text = fmt.Sprintf("ratio at most %.2f", r.limit)
		if ref == 0 {
			return text + ": nothing to compare with"
		}
		got /= ref
	case tailRatio:
		text = fmt.Sprintf("p99 / median at most %.1f", r.limit)
		got = stats.Quantile(r.values, 0.99) / got
	case absolute:
		text = "at most " + stats.Format(r.limit, s.unit)
	}
	if got > r.limit {
		return text + ": **over**"
	}
	return text + ": ok"
}
