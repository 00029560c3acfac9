package vm

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// outside makes a host of its own, reached through this one, that serves HTTP
// and tells each client its address. It returns the server's address.
func outside(t *testing.T) string {
	t.Helper()
	ns := h.prefix + "out"
	const gw, addr = "198.51.100.1", "198.51.100.2" // TEST-NET-2, RFC 5737
	steps := [][]string{
		{"netns", "add", ns},
		{"link", "add", ns, "type", "veth", "peer", "name", "eth0", "netns", ns},
		{"addr", "add", gw + "/24", "dev", ns},
		{"link", "set", ns, "up"},
		{"-n", ns, "addr", "add", addr + "/24", "dev", "eth0"},
		{"-n", ns, "link", "set", "eth0", "up"},
		{"-n", ns, "link", "set", "lo", "up"},
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() }) //nolint:errcheck // may not have been made
	for _, s := range steps {
		if out, err := exec.Command("ip", s...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(s, " "), err, out)
		}
	}
	ln := listenIn(t, ns, addr+":8080")
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "you are %s\n", r.RemoteAddr)
	})}
	go srv.Serve(ln)                  //nolint:errcheck // ends with Close
	t.Cleanup(func() { srv.Close() }) //nolint:errcheck // the test is over
	return addr
}

// listenIn listens in another network namespace.
func listenIn(t *testing.T, ns, addr string) net.Listener {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	other, err := netns.GetFromName(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := netns.Set(other); err != nil {
		t.Fatal(err)
	}
	defer netns.Set(own) //nolint:errcheck // the thread is of no use without it
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func TestNetwork(t *testing.T) {
	img := pulled(t, "busybox")
	server := outside(t)
	id := container(t, img, "sleep", "1000")
	t.Run("out", func(t *testing.T) {
		// The server sees the host: there is NAT.
		if out := must(t, "exec", id, "wget", "-qO-", "http://"+server+":8080/"); !strings.HasPrefix(out, "you are 198.51.100.1:") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("names", func(t *testing.T) {
		out := must(t, "exec", id, "nslookup", "host.hyper.internal")
		if !strings.Contains(out, must(t, "inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", id)) {
			t.Errorf("got %q", out)
		}
	})
	t.Run("from the host", func(t *testing.T) {
		must(t, "exec", "-d", id, "sh", "-c", "echo here > /tmp/index.html; httpd -f -p 80 -h /tmp")
		addr := must(t, "inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", id)
		if _, err := netip.ParseAddr(addr); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() (string, bool) {
			resp, err := http.Get("http://" + addr + "/")
			if err != nil {
				return err.Error(), false
			}
			defer resp.Body.Close()
			return resp.Status, resp.StatusCode == http.StatusOK
		})
	})
	t.Run("none", func(t *testing.T) {
		if out := must(t, "run", "--rm", "--network", "none", img, "ip", "-o", "link"); strings.Contains(out, "eth0") {
			t.Errorf("links: %s", out)
		}
	})
}
