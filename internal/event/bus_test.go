package event

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"
)

func numbered(i int) Event {
	return Event{Type: "container", Action: "start", ID: strconv.Itoa(i), Time: time.Unix(int64(i), 0)}
}

func TestEverySubscriberGetsEveryEventInOrder(t *testing.T) {
	const events, readers = 10000, 20
	var b Bus
	var wg sync.WaitGroup
	for range readers {
		_, s := b.Subscribe(time.Time{})
		wg.Go(func() {
			defer s.Close()
			for i := range events {
				e, err := s.Next(t.Context())
				if err != nil || e.ID != strconv.Itoa(i) {
					t.Errorf("event %d: got %q, %v", i, e.ID, err)
					return
				}
			}
		})
	}
	for i := range events {
		b.Publish(numbered(i))
	}
	wg.Wait()
	if n := b.Subscribers(); n != 0 {
		t.Errorf("%d subscribers left", n)
	}
}

func TestPastIsBoundedAndBeginsAtSince(t *testing.T) {
	var b Bus
	for i := range historySize + 10 {
		b.Publish(numbered(i + 1))
	}
	for _, tt := range []struct {
		since time.Time
		first string
		n     int
	}{
		{time.Time{}, "", 0},
		{time.Unix(0, 0), "11", historySize},
		{time.Unix(historySize, 0), strconv.Itoa(historySize), 11},
		{time.Unix(historySize+11, 0), "", 0},
	} {
		past, s := b.Subscribe(tt.since)
		s.Close()
		first := ""
		if len(past) > 0 {
			first = past[0].ID
		}
		if len(past) != tt.n || first != tt.first {
			t.Errorf("since %v: %d events from %q, want %d from %q", tt.since.Unix(), len(past), first, tt.n, tt.first)
		}
	}
}

func TestSlowSubscriberIsCutOffAndOthersAreNot(t *testing.T) {
	var b Bus
	_, slow := b.Subscribe(time.Time{})
	_, good := b.Subscribe(time.Time{})
	defer good.Close()
	for i := range queueSize + 1 {
		b.Publish(numbered(i))
		if _, err := good.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrTooSlow) {
		t.Errorf("slow subscriber: %v", err)
	}
	if n := b.Subscribers(); n != 1 {
		t.Errorf("%d subscribers, want 1", n)
	}
}

func TestNextEndsWithContextAndClose(t *testing.T) {
	var b Bus
	_, s := b.Subscribe(time.Time{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(5*time.Millisecond, cancel)
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	time.AfterFunc(5*time.Millisecond, s.Close)
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	s.Close()
}

func TestPublishSetsTime(t *testing.T) {
	var b Bus
	_, s := b.Subscribe(time.Time{})
	defer s.Close()
	b.Publish(Event{})
	if e, err := s.Next(t.Context()); err != nil || e.Time.IsZero() {
		t.Errorf("%v, %v", e, err)
	}
}
