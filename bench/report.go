package main

import (
	"fmt"
	"strings"

	"github.com/hyper-run/hyper/bench/internal/stats"
)

// A row is one promise of SPEC.md and what was measured.
type row struct {
	what   string
	unit   string
	limit  float64
	values []float64 // in unit
}

type report struct {
	host []string // lines about the machine
	rows []row
}

func (r row) verdict() string {
	switch {
	case len(r.values) == 0:
		return "not measured"
	case stats.Quantile(r.values, 0.5) > r.limit:
		return "**over**"
	}
	return "ok"
}

// markdown is the table, written by make bench to bench/results.md.
func (r report) markdown() string {
	var b strings.Builder
	b.WriteString("# Measured\n\nBy `make bench`. A promise holds when the median is within the limit.\n\n")
	for _, line := range r.host {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	b.WriteString("\n| what | at most | median | p90 | runs | |\n|---|---|---|---|---|---|\n")
	for _, row := range r.rows {
		median, p90 := "-", "-"
		if len(row.values) > 0 {
			median, p90 = stats.Format(stats.Quantile(row.values, 0.5), row.unit), stats.Format(stats.Quantile(row.values, 0.9), row.unit)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %d | %s |\n", row.what, stats.Format(row.limit, row.unit), median, p90, len(row.values), row.verdict())
	}
	return b.String()
}
