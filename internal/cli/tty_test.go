package cli

import (
	"bufio"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// pty is a terminal of 24 lines and 80 columns, both ends.
func pty(t *testing.T) (user console.Console, term *os.File) {
	t.Helper()
	c, path, err := console.NewPty()
	if err != nil {
		t.Skip("no pseudo-terminals: ", err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Resize(console.WinSize{Height: 24, Width: 80}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return c, f
}

func typeKeys(t *testing.T, user io.Writer, keys string) {
	t.Helper()
	if _, err := io.WriteString(user, keys); err != nil {
		t.Fatal(err)
	}
}

// raise sends this process a signal.
func raise(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func localFlags(t *testing.T, f *os.File) uint32 {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return s.Lflag
}

func TestTerminal(t *testing.T) {
	user, term := pty(t)
	d := newFakeDaemon(t)
	d.tty = true
	before := localFlags(t, term)
	d.process = func(p *fakeProcess) int {
		if localFlags(t, term)&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
			t.Error("the terminal is not raw")
		}
		p.write(1, []byte("$ "))
		line, err := bufio.NewReader(p.in).ReadString('\r')
		if err != nil {
			t.Error(err)
		}
		p.write(1, []byte(line))
		return 5
	}
	code := make(chan int)
	go func() {
		code <- Main(t.Context(), Config{}, []string{"-H", listen(t, d), "run", "-it", "x"}, term, term, io.Discard)
	}()
	out := bufio.NewReader(user)
	expect(t, out, "$ ")
	typeKeys(t, user, "a\x03b\r") // Ctrl-C is the container's
	expect(t, out, "a\x03b\r")
	if c := <-code; c != 5 {
		t.Errorf("code %d", c)
	}
	if localFlags(t, term) != before {
		t.Error("the terminal is not as it was")
	}
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
		t.Fatalf("got %q, %v; want %q", buf, err, want)
	}
}

func TestDetach(t *testing.T) {
	tests := []struct{ args, keys string }{
		{"run -it x", "\x10\x11"},
		{"run -it --detach-keys ctrl-x,y x", "\x18y"},
		{"attach c1", "\x10\x11"},
		{"exec -it c1 sh", "\x10\x11"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			user, term := pty(t)
			d := newFakeDaemon(t)
			d.tty = true
			got := make(chan string, 1)
			d.process = func(p *fakeProcess) int {
				p.write(1, []byte("$ "))
				in, _ := io.ReadAll(p.in)
				got <- string(in)
				return 0
			}
			if strings.HasPrefix(test.args, "attach") {
				go func() { d.process(<-d.attached) }()
			}
			code := make(chan int)
			go func() {
				code <- Main(t.Context(), Config{}, append([]string{"-H", listen(t, d)}, strings.Fields(test.args)...), term, term, io.Discard)
			}()
			expect(t, user, "$ ")
			typeKeys(t, user, "ab"+test.keys)
			if c := <-code; c != 0 {
				t.Errorf("code %d", c)
			}
			if in := <-got; in != "ab" {
				t.Errorf("the process read %q", in)
			}
		})
	}
}

// The size of the terminal goes along when the container is made, and again
// when it changes.
func TestWindowSize(t *testing.T) {
	user, term := pty(t)
	d := newFakeDaemon(t)
	d.tty = true
	resized := make(chan struct{})
	d.answers["POST /containers/c1/resize"] = "200 "
	d.process = func(p *fakeProcess) int {
		p.write(1, []byte("$ "))
		<-resized
		return 0
	}
	code := make(chan int)
	go func() {
		code <- Main(t.Context(), Config{}, []string{"-H", listen(t, d), "run", "-t", "x"}, nil, term, io.Discard)
	}()
	expect(t, user, "$ ")
	if err := user.Resize(console.WinSize{Height: 50, Width: 132}); err != nil {
		t.Fatal(err)
	}
	// The terminal is not this process's own, so the kernel tells nobody.
	deadline := time.Now().Add(10 * time.Second)
	for !d.asked("POST /containers/c1/resize?h=50&w=132") {
		if time.Now().After(deadline) {
			t.Errorf("requests: %q", d.requests)
			break
		}
		raise(t, syscall.SIGWINCH)
		time.Sleep(5 * time.Millisecond)
	}
	close(resized)
	if c := <-code; c != 0 {
		t.Errorf("code %d", c)
	}
}

func TestSignals(t *testing.T) {
	for _, args := range []string{"run x", "start -a c1", "attach c1"} {
		t.Run(args, func(t *testing.T) {
			d := newFakeDaemon(t)
			d.answers["POST /containers/c1/kill"] = "204 "
			up := make(chan struct{})
			d.process = func(p *fakeProcess) int {
				p.write(1, []byte("."))
				<-up
				return 130
			}
			if strings.HasPrefix(args, "attach") {
				go func() {
					p := <-d.attached
					code := d.process(p)
					p.Close()
					d.exited <- code
				}()
			}
			r, w := io.Pipe()
			code := make(chan int)
			go func() {
				code <- Main(t.Context(), Config{}, append([]string{"-H", listen(t, d)}, strings.Fields(args)...), nil, w, io.Discard)
			}()
			expect(t, r, ".")
			raise(t, syscall.SIGINT)
			raise(t, syscall.SIGUSR1)
			deadline := time.Now().Add(10 * time.Second)
			for !d.asked("POST /containers/c1/kill?signal=SIGINT") || !d.asked("POST /containers/c1/kill?signal=SIGUSR1") {
				if time.Now().After(deadline) {
					t.Errorf("requests: %q", d.requests)
					break
				}
				time.Sleep(time.Millisecond)
			}
			close(up)
			if c := <-code; c != 130 {
				t.Errorf("code %d", c)
			}
		})
	}
}

// The third Ctrl-C ends hyper when the container takes no notice.
func TestGivingUp(t *testing.T) {
	d := newFakeDaemon(t)
	d.answers["POST /containers/c1/kill"] = "204 "
	up := make(chan struct{})
	defer close(up)
	d.process = func(p *fakeProcess) int {
		p.write(1, []byte("."))
		<-up
		return 0
	}
	r, w := io.Pipe()
	var errOut strings.Builder
	code := make(chan int)
	go func() {
		code <- Main(t.Context(), Config{}, []string{"-H", listen(t, d), "run", "x"}, nil, w, &errOut)
	}()
	expect(t, r, ".")
	tick := time.NewTicker(20 * time.Millisecond) // signals that are pending are one
	defer tick.Stop()
	for {
		select {
		case c := <-code:
			if c != 125 || !strings.Contains(errOut.String(), "hyper: cannot run: interrupted three times; the container goes on running\n") {
				t.Errorf("%d: %s", c, &errOut)
			}
			return
		case <-tick.C:
			raise(t, syscall.SIGINT)
		}
	}
}

// Any other command ends with Ctrl-C.
func TestInterrupted(t *testing.T) {
	d := newFakeDaemon(t)
	up := make(chan struct{})
	code := make(chan int)
	var errOut strings.Builder
	go func() {
		code <- Main(t.Context(), Config{}, []string{"-H", listen(t, d), "wait", "c1"}, nil, io.Discard, &errOut)
	}()
	go func() {
		for !d.asked("POST /containers/c1/wait") {
			time.Sleep(time.Millisecond)
		}
		close(up)
	}()
	<-up
	raise(t, syscall.SIGINT)
	if c := <-code; c != exitInterrupted || errOut.Len() > 0 {
		t.Errorf("%d: %s", c, &errOut)
	}
}
