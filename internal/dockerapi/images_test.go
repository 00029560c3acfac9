package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
)

func TestImages(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := testImage("nginx:latest").ID.String()
	list, err := w.ImageList(ctx, client.ImageListOptions{Filters: client.Filters{}.Add("reference", "ngin*")})
	if err != nil || len(list.Items) != 1 || list.Items[0].ID != id || list.Items[0].Size != 3<<20 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if list, err = w.ImageList(ctx, client.ImageListOptions{Filters: client.Filters{}.Add("dangling", "true")}); err != nil || len(list.Items) != 0 {
		t.Errorf("dangling: %+v, %v", list, err)
	}
	in, err := w.ImageInspect(ctx, "nginx")
	if err != nil || in.ID != id || in.Config.StopSignal != "SIGQUIT" || in.Created != "2024-01-02T03:04:05Z" || len(in.RootFS.Layers) != 1 {
		t.Errorf("inspect: %+v, %v", in, err)
	}
	h, err := w.ImageHistory(ctx, "nginx")
	if err != nil || len(h.Items) != 1 || h.Items[0].ID != id || h.Items[0].CreatedBy != "ADD / # nginx:latest" {
		t.Errorf("history: %+v, %v", h, err)
	}
	if _, err := w.ImageTag(ctx, client.ImageTagOptions{Source: "nginx", Target: "registry.test/a/b:1"}); err != nil {
		t.Error(err)
	}
	if _, err := w.ImageInspect(ctx, "registry.test/a/b:1"); err != nil {
		t.Error(err)
	}
	r, err := w.ImageSave(ctx, []string{"nginx", "registry.test/a/b:1"})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); err != nil || string(data) != "nginx+registry.test/a/b:1" {
		t.Errorf("save: %q, %v", data, err)
	}
	r.Close()
	w.create(t, "user", container.Config{}, container.HostConfig{})
	if _, err := w.ImageRemove(ctx, "nginx", client.ImageRemoveOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("remove in use: %v", err)
	}
	load, err := w.ImageLoad(ctx, strings.NewReader("loaded:1"))
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(load); err != nil || !strings.HasSuffix(string(data), "\n"+`{"stream":"Loaded image: loaded:1\n"}`+"\n") {
		t.Errorf("load: %q, %v", data, err)
	}
	load.Close()
	pruned, err := w.ImagePrune(ctx, client.ImagePruneOptions{Filters: client.Filters{}.Add("dangling", "false")})
	if err != nil || len(pruned.Report.ImagesDeleted) != 2 {
		t.Errorf("prune: %+v, %v", pruned, err)
	}
}

func TestPullSpeaksAsDocker(t *testing.T) {
	w := newWorld(t)
	const layers = `{"status":"Pulling from x","id":"1"}
{"status":"Pulling fs layer","progressDetail":{},"id":"0123456789ab"}
{"status":"Downloading","progressDetail":{"current":10,"total":100},"id":"0123456789ab"}
`
	digest := testImage("new:1").Manifest.Digest
	for _, tt := range []struct{ ref, want string }{
		{"new", layers + `{"status":"Pull complete","progressDetail":{},"id":"0123456789ab"}` + "\n" + `{"status":"Status: Downloaded newer image for new:1"}` + "\n"},
		{"registry.test/broken", layers + `{"errorDetail":{"message":"connection reset"},"error":"connection reset"}` + "\n"},
	} {
		res, body := w.do(t, "POST", "/images/create?fromImage="+tt.ref+"&tag=1", "")
		if res.StatusCode != 200 || body != tt.want {
			t.Errorf("%s: %d\n%s", tt.ref, res.StatusCode, cmp.Diff(tt.want, body))
		}
	}
	auth := func(server string) string { // what the request carries for registry.test
		w.images.auth.Username = ""
		res, err := w.ImagePull(t.Context(), server+"/a:1", client.ImagePullOptions{RegistryAuth: mustAuth(t)})
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Wait(t.Context())
		return w.images.auth.Username
	}
	if got := auth("registry.test"); got != "me" {
		t.Errorf("the registry was not given the credentials: %q", got)
	}
	if got := auth("other.test"); got != "" {
		t.Errorf("another registry was given the credentials: %q", got)
	}
	push, err := w.ImagePush(t.Context(), "new:1", client.ImagePushOptions{RegistryAuth: mustAuth(t)})
	if err != nil {
		t.Fatal(err)
	}
	var last jsonstream.Message
	for m, err := range push.JSONMessages(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		last = m
	}
	if last.Aux == nil || !strings.Contains(string(*last.Aux), digest.String()) {
		t.Errorf("push: %+v", last)
	}
}

func mustAuth(t *testing.T) string {
	t.Helper()
	data, err := json.Marshal(registry.AuthConfig{Username: "me", Password: "pw"})
	if err != nil {
		t.Fatal(err)
	}
	return encodeURL(data)
}

func TestLoginAsksTheRegistry(t *testing.T) {
	mux := http.NewServeMux()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+host+`/token",service="reg"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "pw" || r.FormValue("service") != "reg" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	defer http.DefaultClient.CloseIdleConnections()
	w := newWorld(t)
	for password, ok := range map[string]bool{"pw": true, "wrong": false} {
		_, err := w.RegistryLogin(t.Context(), client.RegistryLoginOptions{Username: "me", Password: password, ServerAddress: host})
		if (err == nil) != ok || err != nil && !errdefs.IsUnauthorized(err) {
			t.Errorf("%s: %v", password, err)
		}
	}
}

func encodeURL(data []byte) string { return base64.URLEncoding.EncodeToString(data) }
