package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
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

// quantile returns the q-quantile by the nearest rank.
func quantile(values []float64, q float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return v[min(int(q*float64(len(v))), len(v)-1)]
}

func (r row) verdict() string {
	switch {
	case len(r.values) == 0:
		return "not measured"
	case quantile(r.values, 0.5) > r.limit:
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
			median, p90 = row.format(quantile(row.values, 0.5)), row.format(quantile(row.values, 0.9))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %d | %s |\n", row.what, row.format(row.limit), median, p90, len(row.values), row.verdict())
	}
	return b.String()
}

func (r row) format(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f %s", v, r.unit)
	}
	return fmt.Sprintf("%.0f %s", v, r.unit)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func megabytes(n int64) float64 { return float64(n) / (1 << 20) }
