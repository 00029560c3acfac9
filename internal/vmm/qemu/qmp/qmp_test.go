package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}`

// pair returns a client's end and a server's.
func pair(t *testing.T) (*net.UnixConn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "qmp")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0].(*net.UnixConn), ends[1]
}

// command is what the server got.
type command struct {
	Execute string
	ID      uint64
}

// serve answers the handshake and hands every further command to answer,
// whose lines it sends. It ends with the connection.
func serve(conn net.Conn, answer func(command) []string) {
	fmt.Fprintln(conn, greeting)
	in := bufio.NewScanner(conn)
	for in.Scan() {
		var c command
		if json.Unmarshal(in.Bytes(), &c) != nil {
			return
		}
		if c.Execute == "qmp_capabilities" {
			fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\r\n", c.ID)
			continue
		}
		for _, line := range answer(c) {
			fmt.Fprintf(conn, "%s\r\n", line)
		}
	}
}

func client(t *testing.T, handle func(Event), answer func(command) []string) *Client {
	t.Helper()
	ours, theirs := pair(t)
	go serve(theirs, answer)
	c := New(ours, handle)
	t.Cleanup(c.Close)
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRepliesAreMatchedByID(t *testing.T) {
	// The server answers in pairs, the later command first.
	var held string
	c := client(t, nil, func(c command) []string {
		reply := fmt.Sprintf(`{"return": {"status": %q}, "id": %d}`, c.Execute, c.ID)
		if held == "" {
			held = reply
			return nil
		}
		out := []string{reply, `{"return": {}, "id": 999}`, held}
		held = ""
		return out
	})
	var wg sync.WaitGroup
	for _, name := range []string{"one", "two", "three", "four"} {
		wg.Go(func() {
			var r struct{ Status string }
			if err := c.Execute(t.Context(), name, nil, &r); err != nil || r.Status != name {
				t.Errorf("%s: got %q, %v", name, r.Status, err)
			}
		})
	}
	wg.Wait()
}

func TestEventsComeInOrder(t *testing.T) {
	got := make(chan string, 3)
	c := client(t, func(e Event) { got <- e.Name + string(e.Data) }, func(c command) []string {
		return []string{
			`{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}`,
			`{"event": "SHUTDOWN", "data": {"guest": true}}`,
			fmt.Sprintf(`{"return": {}, "id": %d}`, c.ID),
		}
	})
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a, b := <-got, <-got; a != "STOP" || b != `SHUTDOWN{"guest": true}` {
		t.Errorf("events %s, %s", a, b)
	}
}

// TestCommandsBeforeTheGreeting: they wait in the socket, and are answered in
// their order, one that is refused among them.
func TestCommandsBeforeTheGreeting(t *testing.T) {
	ours, theirs := pair(t)
	c := New(ours, nil)
	t.Cleanup(c.Close)
	one := c.Send(t.Context(), "one", nil, nil)
	two := c.Send(t.Context(), "two", nil, nil)
	three := c.Send(t.Context(), "three", nil, nil)
	var order []string
	go serve(theirs, func(c command) []string {
		order = append(order, c.Execute)
		if c.Execute == "two" {
			return []string{fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`, c.ID)}
		}
		return []string{fmt.Sprintf(`{"return": {}, "id": %d}`, c.ID)}
	})
	if err := c.Ready(t.Context()); err != nil || c.Version.Major != 7 {
		t.Errorf("version %v, %v", c.Version, err)
	}
	if err := WaitAll(t.Context(), one, two, three); err == nil || err.Error() != "qmp two: no" {
		t.Errorf("got %v", err)
	}
	if got := strings.Join(order, " "); got != "one two three" {
		t.Errorf("executed in order %s", got)
	}
}

func TestNoGreeting(t *testing.T) {
	ours, theirs := pair(t)
	c := New(ours, nil)
	t.Cleanup(c.Close)
	fmt.Fprintln(theirs, `{"return": {}, "id": 1}`)
	if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no greeting") {
		t.Errorf("got %v", err)
	}
}

func TestRefusalIsAnError(t *testing.T) {
	c := client(t, nil, func(c command) []string {
		return []string{fmt.Sprintf(`{"error": {"class": "DeviceNotFound", "desc": "no such"}, "id": %d}`, c.ID)}
	})
	_, err := c.RingbufRead(t.Context(), "console", 1)
	var refused *Error
	if !errors.As(err, &refused) || refused.Class != "DeviceNotFound" {
		t.Fatalf("got %v", err)
	}
	if want := "qmp ringbuf-read: no such"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestSilentQEMUIsBoundedByContext(t *testing.T) {
	c := client(t, nil, func(command) []string { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.QueryStatus(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if c.Err() != nil {
		t.Errorf("connection ended: %v", c.Err())
	}
	ours, _ := pair(t)
	silent := New(ours, nil)
	defer silent.Close()
	if err := silent.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no greeting: got %v", err)
	}
}

func TestBrokenProtocolEndsTheConnection(t *testing.T) {
	for name, line := range map[string]string{
		"garbage":         "\x00\xff",
		"too long":        `{"return": "` + strings.Repeat("x", maxMessage) + `", "id": 2}`,
		"second greeting": greeting,
		"no id":           `{"return": {}}`,
		"unparsed":        `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
		"negative id":     `{"return": {}, "id": -1}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, nil, func(command) []string { return []string{line} })
			if err := c.Stop(t.Context()); err == nil {
				t.Fatal("no error")
			}
			<-c.Done()
			if c.Err() == nil {
				t.Error("connection lives")
			}
		})
	}
}

func TestEndOfQEMUFailsWhatWaits(t *testing.T) {
	ours, theirs := pair(t)
	go serve(theirs, func(command) []string { theirs.Close(); return nil })
	c := New(ours, nil)
	defer c.Close()
	if err := c.Stop(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("waiting command: got %v", err)
	}
	if err := c.Stop(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("later command: got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		greeting,
		`{"return": {}, "id": 1}`,
		`{"return": null, "id": 1}`,
		`{"error": {"class": "GenericError", "desc": "x"}, "id": 18446744073709551615}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`,
		`{"QMP": {}}`, `{"id": {}}`, `[]`, `""`, `{"event": null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err == nil && (m.kind < kindGreeting || m.kind > kindEvent) {
			t.Errorf("message without a kind from %q", line)
		}
		if err == nil && m.kind == kindReply && (m.err == nil) == (m.result == nil) {
			t.Errorf("reply neither good nor bad from %q", line)
		}
	})
}
