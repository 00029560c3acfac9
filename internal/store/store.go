// Package store keeps hyperd's records on disk and names every path it uses.
//
// There are two stores of the same kind. The durable one (state.db) is the
// truth about what exists and is synced to disk with every change. The
// runtime one (runtime-BOOTID.db) holds what cannot outlive the host's boot:
// virtual machines, devices, containers that remove themselves. It is never
// synced, because it has to survive kill -9 of hyperd but not the host, which
// keeps fsync off the road of a start.
//
// A store knows records as values, never what they mean. A record that
// describes something on the host is put before that thing is made.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// schema is the version of the records' layout. A store written by a newer
// hyperd is refused, never guessed at.
const schema = 1

var metaBucket, schemaKey = []byte("meta"), []byte("schema")

// A Store is one file of records, in named buckets. Safe for concurrent use.
type Store struct{ db *bolt.DB }

// Open opens the durable store, making it if need be.
func Open(path string) (*Store, error) { return open(path, false) }

// OpenRuntime opens the store of this boot of the host and removes those of
// earlier boots.
func OpenRuntime(dir string) (*Store, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	name := "runtime-" + strings.TrimSpace(string(id)) + ".db"
	old, err := filepath.Glob(filepath.Join(dir, "runtime-*.db"))
	if err != nil {
		return nil, err
	}
	for _, p := range old {
		if filepath.Base(p) != name {
			if err := os.Remove(p); err != nil {
				return nil, fmt.Errorf("remove the state of an earlier boot: %w", err)
			}
		}
	}
	return open(filepath.Join(dir, name), true)
}

func open(path string, noSync bool) (*Store, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: time.Second, NoSync: noSync, NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another hyperd has it open: %w", path, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &Store{db}
	if err := s.checkSchema(); err != nil {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func (s *Store) checkSchema() error {
	var have int
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(metaBucket)
		if b == nil {
			return nil
		}
		return json.Unmarshal(b.Get(schemaKey), &have)
	})
	switch {
	case err != nil:
		return fmt.Errorf("read schema: %w", err)
	case have > schema:
		return fmt.Errorf("written by a newer hyperd (schema %d, this one knows %d): %w", have, schema, errdefs.ErrFailedPrecondition)
	case have == schema:
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		return b.Put(schemaKey, fmt.Append(nil, schema))
	})
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Put writes v, encoded as JSON, as bucket/key.
func (s *Store) Put(bucket, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", bucket, key, err)
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), data)
	})
	if err != nil {
		return fmt.Errorf("record %s %s: %w", bucket, key, err)
	}
	return nil
}

// Delete removes bucket/key; nil when it was not there.
func (s *Store) Delete(bucket, key string) error {
	var there bool
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		there = b != nil && b.Get([]byte(key)) != nil
		return nil
	})
	if err == nil && there {
		err = s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Delete([]byte(key)) })
	}
	if err != nil {
		return fmt.Errorf("forget %s %s: %w", bucket, key, err)
	}
	return nil
}

// Load decodes every record of a bucket, in the order of their keys. A record
// that does not decode is an error that names it: state is never dropped in
// silence.
func Load[T any](s *Store, bucket string) (map[string]T, error) {
	all := map[string]T{}
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			var t T
			if err := json.Unmarshal(v, &t); err != nil {
				return fmt.Errorf("decode %s %s: %w", bucket, k, err)
			}
			all[string(k)] = t
			return nil
		})
	})
	return all, err
}
