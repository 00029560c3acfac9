package template

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
)

// A Store is all templates of one hyperd. Its methods may be called
// concurrently.
type Store struct {
	cfg Config
}

// A Template is ready to be cloned, also after it was removed from its Store:
// what it is made of goes with the last clone.
type Template struct {
	ID    string
	Shape Shape
	saved vmm.Saved
	found vmm.Machine // what the driver chose
	accel vmm.Accel
}

// A NotReadyError says why there is no template to clone now. It is of kind
// errdefs.ErrUnavailable.
type NotReadyError struct{ Why string }

func (e *NotReadyError) Error() string { return "no template: " + e.Why }

// Unwrap gives the kind.
func (e *NotReadyError) Unwrap() error { return errdefs.ErrUnavailable }

// Open returns the templates in cfg.Dir. It ends VMs that an earlier Store
// left half-made. Files are loaded when they are asked for.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	return &Store{cfg: cfg}, nil
}

// Find returns a template to clone. When there is none it begins to load or
// make one; it waits for loading (0.1 s), but not for making: then, and when making
// failed lately, the error is a *[NotReadyError].
func (s *Store) Find(ctx context.Context, shape Shape) (*Template, error) {
	return nil, &NotReadyError{"not implemented"}
}

// Clone makes cfg, whose disks have the IDs of slots, the configuration of a
// clone: the slots that it does not fill stay empty.
func (t *Template) Clone(cfg *vmm.Config) {}

// Spoiled says that a clone did not come up because of the template: it is
// dropped, and made anew when it is next asked for.
func (s *Store) Spoiled(t *Template, err error) {}

// Make returns when there is a template of that shape, which it makes if need
// be. Errors say why it could not be made.
func (s *Store) Make(ctx context.Context, shape Shape) (Info, error) {
	return Info{}, errors.New("not implemented")
}

// List returns all templates, the latest made first.
func (s *Store) List() []Info { return nil }

// Get returns the template with an ID or a unique prefix of one.
// Errors: errdefs NotFound, InvalidArgument (ambiguous).
func (s *Store) Get(ref string) (Info, error) {
	return Info{}, fmt.Errorf("no such template: %s: %w", ref, errdefs.ErrNotFound)
}

// Remove drops a template and its files; clones of it run on.
func (s *Store) Remove(ref string) error {
	return fmt.Errorf("no such template: %s: %w", ref, errdefs.ErrNotFound)
}

// Close ends what is being made or loaded, and waits for it.
func (s *Store) Close() {}
