package main

import (
	"fmt"
	"html"
	"strings"

	"github.com/hyper-run/hyper/bench/internal/stats"
)

// Measures of the plot, in pixels.
const (
	plotWidth  = 760
	labelWidth = 250
	valueWidth = 80 // for the number behind the longest bar
	rowHeight  = 24
	titleRoom  = 44
)

// plotStyle suits light and dark pages: the picture has no ground of its own.
const plotStyle = `<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.ours { fill: #0a7d5a } .other { fill: #8c959f }
.whisker { stroke: #1f2328; stroke-width: 1.5; fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .ours { fill: #3fb68b } .other { fill: #6e7681 } .whisker { stroke: #e6edf3 }
}
</style>
`

// svg is a plot of all sections, one below the other: a bar up to each median,
// a whisker from there to the 90th percentile. What is not available has no bar.
func (r report) svg() string {
	var body strings.Builder
	y := 0
	for _, s := range r.sections {
		y = s.plot(&body, y)
	}
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"start times\">\n%s%s</svg>\n",
		plotWidth, y+10, plotWidth, y+10, plotStyle, body.String())
}

// plot draws a section below y and returns where it ends.
func (s section) plot(b *strings.Builder, y int) int {
	most := 0.0
	for _, r := range s.results {
		if len(r.values) > 0 {
			most = max(most, stats.Quantile(r.values, 0.9))
		}
	}
	if most == 0 {
		return y
	}
	scale := (plotWidth - labelWidth - valueWidth) / most
	fmt.Fprintf(b, "<text class=\"title\" x=\"8\" y=\"%d\">%s (%s)</text>\n", y+28, plain(s.title), s.unit)
	y += titleRoom
	for _, r := range s.results {
		if len(r.values) == 0 {
			continue
		}
		median, p90 := stats.Quantile(r.values, 0.5), stats.Quantile(r.values, 0.9)
		class := "other"
		if strings.Contains(r.label, "**") || s.alone() {
			class = "ours"
		}
		fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", labelWidth-8, y+16, plain(r.label))
		fmt.Fprintf(b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"16\" rx=\"2\"/>\n", class, labelWidth, y+3, median*scale)
		if p90 > median {
			from, to := labelWidth+median*scale, labelWidth+p90*scale
			fmt.Fprintf(b, "<path class=\"whisker\" d=\"M%.1f %dH%.1fM%.1f %dv8\"/>\n", from, y+11, to, to, y+7)
		}
		fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", labelWidth+p90*scale+6, y+16, stats.Format(median, s.unit))
		y += rowHeight
	}
	return y
}

// alone says that a section is about nobody but us.
func (s section) alone() bool { return len(s.results) == 1 }

// plain is text without Markdown's marks, as XML.
func plain(text string) string {
	return html.EscapeString(strings.NewReplacer("**", "", "`", "").Replace(text))
}
