package show

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
)

// Event is an event in one line.
func Event(e events.Message) string {
	at := time.Unix(e.Time, 0)
	if e.TimeNano != 0 {
		at = time.Unix(0, e.TimeNano)
	}
	line := fmt.Sprintf("%s %s %s %s", at.Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	var attrs []string
	for _, k := range slices.Sorted(maps.Keys(e.Actor.Attributes)) {
		attrs = append(attrs, k+"="+e.Actor.Attributes[k])
	}
	if len(attrs) > 0 {
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	return line
}
