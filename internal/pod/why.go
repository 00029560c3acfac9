package pod

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/logs"
)

// whyLines is how many lines of a container's log Why shows.
const whyLines = 20

// Why implements Pods.
func (s *Set) Why(ctx context.Context, ref string) (Why, error) {
	if p, err := s.findPod(ref); err == nil && p.explicit() {
		if _, err := s.find(ref); err != nil {
			return p.why(), nil
		}
	}
	c, err := s.find(ref)
	if err != nil {
		return Why{}, textError{fmt.Sprintf("No such container or pod: %s", ref), err}
	}
	v := c.view()
	c.mu.Lock()
	end := c.rec.End
	c.mu.Unlock()
	w := Why{What: "container", ID: v.ID, Name: v.Name, Status: string(v.Status), At: end.FinishedAt}
	w.tell(end, v)
	if v.Status == StatusRunning || v.Status == StatusPaused {
		w.Cause, w.Summary, w.At = CauseRunning, "It runs.", v.StartedAt
		if !v.Ready {
			w.Summary = "It runs, and is not ready."
			w.Detail = v.Probe
		}
	}
	if v.Spec.Log.Driver != "none" && !v.StartedAt.IsZero() {
		w.Log = s.lastLines(ctx, v.ID)
	}
	return w, nil
}

func (w *Why) tell(e End, v Container) {
	w.Cause, w.Detail, w.Stage, w.Stderr, w.Console = e.Cause, e.Detail, e.Stage, e.Stderr, e.Console
	switch e.Cause {
	case "":
		w.Cause, w.Summary, w.At = CauseCreated, "It was never started.", v.Created
	case CauseExit:
		w.Summary = fmt.Sprintf("Its process exited with code %d", e.ExitCode)
		if why := exitMeaning[e.ExitCode]; why != "" {
			w.Summary += " (" + why + ")"
		}
		w.Summary += "."
	case CauseSignal:
		w.Summary = fmt.Sprintf("Its process was ended by signal %d (%s), which nobody here sent.", e.Signal, unix.SignalName(unix.Signal(e.Signal)))
	case CauseStopped:
		w.Summary = fmt.Sprintf("It was stopped, and exited with code %d.", e.ExitCode)
	case CauseOOM:
		w.Summary = "It needed more memory than it may have"
		if limit := v.Spec.Resources.MemoryBytes; limit > 0 {
			w.Summary += fmt.Sprintf(" (%d MiB)", limit/mib)
		}
		w.Summary += "."
	case CauseStart:
		w.Summary = "It did not start: " + e.Error
	case CauseProbe:
		w.Summary = "It was killed because a probe or hook failed."
	default:
		w.Summary = sentence(e.Error)
	}
}

// sentence makes text begin with a capital letter and end with a full stop.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + strings.TrimRight(text[1:], ".") + "."
}

// exitMeaning is what some exit codes say, as of a shell.
var exitMeaning = map[int]string{
	0: "success", 126: "the program can't be executed", 127: "there is no such program",
	134: "it aborted itself", 137: "it was killed", 139: "it made an invalid memory reference", 143: "it was told to terminate",
}

func (s *Set) lastLines(ctx context.Context, id string) []string {
	records, _, err := s.Logs(ctx, id, logs.ReadOptions{Tail: whyLines, Stdout: true, Stderr: true})
	if err != nil {
		return nil
	}
	var lines []string
	for rec, err := range records {
		if err != nil {
			return append(lines, "("+err.Error()+")")
		}
		lines = append(lines, strings.TrimRight(string(rec.Line), "\r\n"))
	}
	return lines
}

// why is Why of a pod that was made as such.
func (p *pod) why() Why {
	v, rec := p.view(), p.record()
	w := Why{What: "pod", ID: v.ID, Name: v.Name, Status: string(v.Status), At: rec.FinishedAt}
	w.tell(rec.End, Container{Created: v.Created})
	switch {
	case v.VM != nil:
		w.Cause, w.Summary, w.At = CauseRunning, "Its virtual machine runs.", v.StartedAt
	case rec.Cause == CauseStopped:
		w.Summary = "It was stopped."
	}
	var bad []string
	for _, c := range v.Containers {
		switch {
		case c.Status == StatusRunning || c.Status == StatusPaused || c.Status == StatusCreated && c.Error == "":
		case c.ExitCode != 0 || c.Error != "":
			bad = append(bad, fmt.Sprintf("container %s: %s, exit code %d", c.Name, c.Cause, c.ExitCode))
		}
	}
	if len(bad) > 0 {
		w.Detail = strings.TrimSpace(w.Detail + "\n" + strings.Join(bad, "\n"))
	}
	return w
}
