package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
)

type rec struct{ A string }

func TestPutLoadDelete(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]rec{"x": {"1"}, "y": {"2"}} {
		if err := s.Put("b", k, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete("b", "x"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete("none", "x"); err != nil {
		t.Fatalf("delete of what is not there: %v", err)
	}
	s.Close()
	s, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := Load[rec](s, "b")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]rec{"y": {"2"}}, got); diff != "" {
		t.Error(diff)
	}
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := Open(path); !errdefs.IsUnavailable(err) {
		t.Fatalf("second open: %v, want unavailable", err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(schemaKey, []byte("99")) })
	s.Close()
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "newer hyperd") {
		t.Fatalf("got %v", err)
	}
}

func TestBrokenRecordIsNamed(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Put("b", "key1", "a string, no rec"); err != nil {
		t.Fatal(err)
	}
	if _, err := Load[rec](s, "b"); err == nil || !strings.Contains(err.Error(), "b key1") {
		t.Fatalf("got %v", err)
	}
}

func TestRuntimeForgetsEarlierBoots(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "runtime-0000.db")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := OpenRuntime(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", old, err)
	}
}
