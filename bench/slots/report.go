package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hyper-run/hyper/bench/internal/stats"
)

func (r *report) markdown() string {
	var b strings.Builder
	b.WriteString("# Slots for image layers: virtio-blk, virtio-pmem with DAX\n\nBy `go run ./bench/slots`.\n\n")
	for _, line := range r.host {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	b.WriteString("\nStarts: from the exec of QEMU, ms, median (minimum). Answers: the guest has mounted the image and read one small file.\n" +
		"Reading: the whole image in the guest, MB/s, median (maximum); the host has it in its page cache.\n\n" +
		"| image | files | slot | QMP ready | state loaded | guest answers | first read | read again |\n|---|---|---|---|---|---|---|---|\n")
	for _, w := range r.rows {
		fmt.Fprintf(&b, "| %g MB | %d | %v | %s | %s | %s | %s | %s |\n", w.mb, w.files, w.road,
			fastest(w.qmp), fastest(w.loaded), fastest(w.answer), most(w.first), most(w.again))
	}
	fmt.Fprintf(&b, "\nMemory of each of %d idle VMs that have read the whole image, MiB, median. Private: what the process alone has and has written;\n"+
		"guest: the part of it that is the guest's memory. PSS has a share of the image in the host's page cache with pmem, and none with blk.\n"+
		"Page tables, those of the process on the host, are in neither.\n\n"+
		"| image | slot | private | guest | PSS | page tables |\n|---|---|---|---|---|---|\n", r.crowd)
	for _, w := range r.rows {
		fmt.Fprintf(&b, "| %g MB | %v | %s | %s | %s | %s |\n", w.mb, w.road, middle(w.private), middle(w.guest), middle(w.pss), middle(w.pageTables))
	}
	b.WriteString("\nTemplates: memory that the guest has touched when it waits for an image.\n\n" +
		"| slots | cold boot | memory | state |\n|---|---|---|---|\n")
	for _, t := range r.templates {
		size := ""
		if t.kind == pmem {
			size = fmt.Sprintf(" of %d MiB", t.slotMiB)
		}
		fmt.Fprintf(&b, "| %v: %d%s | %.0f ms | %.1f MiB | %.2f MiB |\n", t.road, t.slots, size, t.boot, t.used, t.state)
	}
	if r.perGiB != 0 {
		fmt.Fprintf(&b, "\nA GiB of pmem slots, empty or not, takes %.1f MiB of the guest's memory (struct pages).\n", r.perGiB)
	}
	return b.String()
}

func fastest(values []float64) string {
	return fmt.Sprintf("%s (%.0f)", middle(values), slices.Min(values))
}

func most(values []float64) string {
	return fmt.Sprintf("%s (%.0f)", middle(values), slices.Max(values))
}

// middle is the median, with digits enough to tell small numbers apart.
func middle(values []float64) string {
	m := stats.Quantile(values, 0.5)
	if m < 10 {
		return fmt.Sprintf("%.2f", m)
	}
	return fmt.Sprintf("%.0f", m)
}
