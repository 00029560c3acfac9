package cli

import (
	"context"
	"errors"
)

// eachAtOnce bounds the requests of one command.
const eachAtOnce = 16

// each does something to every name, many at once, and prints in order the
// names that it worked for. The errors of the others are joined.
func (a *app) each(ctx context.Context, verb string, names []string, do func(ctx context.Context, name string) error) error {
	results := make([]chan error, len(names))
	slots := make(chan struct{}, eachAtOnce)
	for i, name := range names {
		results[i] = make(chan error, 1)
		go func() {
			slots <- struct{}{}
			results[i] <- do(ctx, name)
			<-slots
		}()
	}
	var errs []error
	for i, name := range names {
		switch err := <-results[i]; {
		case errors.Is(err, errSkip):
		case err != nil:
			errs = append(errs, cannot(err, "%s %s", verb, name))
		default:
			a.println(name)
		}
	}
	return errors.Join(errs...)
}

// errSkip means that there was nothing to do, and nothing is to be printed.
var errSkip = errors.New("skip")
