package vm

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Credentials reach a registry by docker's config.json and by its helpers.
func TestPrivateRegistry(t *testing.T) {
	img := pulled(t, "busybox")
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, ok := r.BasicAuth(); !ok || user != "someone" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	ref := host + "/private/img:1"
	must(t, "tag", img, ref)
	defer cleanup(t, "rmi", ref)

	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if r := hyper(t, "push", ref); r.code == 0 || !strings.Contains(r.err, "auth") {
		t.Errorf("push without credentials: %+v", r)
	}
	if r := hyperIn(t, strings.NewReader("wrong"), "login", "-u", "someone", "--password-stdin", host); r.code == 0 {
		t.Errorf("login with a wrong password: %+v", r)
	}
	if r := hyperIn(t, strings.NewReader("secret"), "login", "-u", "someone", "--password-stdin", host); r.code != 0 {
		t.Fatalf("login: %+v", r)
	}
	must(t, "push", ref)
	must(t, "rmi", ref)
	must(t, "pull", ref)

	// The same from a credential helper.
	dir := t.TempDir()
	helper := "#!/bin/sh\n[ \"$1\" = get ] && echo '{\"ServerURL\":\"" + host + "\",\"Username\":\"someone\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credHelpers":{"`+host+`":"test"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_CONFIG", dir)
	must(t, "rmi", ref)
	must(t, "pull", ref)
}
