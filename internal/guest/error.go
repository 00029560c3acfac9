package guest

import (
	"context"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxErrorText bounds what a guest can make the host log or show.
const maxErrorText = 4 << 10

// An Error is what a guest answered instead of a result. It unwraps to a
// containerd/errdefs kind.
type Error struct {
	Message string // the guest's own words, printable, bounded
	Kind    error
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Kind }

var kinds = map[codes.Code]error{
	codes.InvalidArgument:    errdefs.ErrInvalidArgument,
	codes.NotFound:           errdefs.ErrNotFound,
	codes.AlreadyExists:      errdefs.ErrAlreadyExists,
	codes.PermissionDenied:   errdefs.ErrPermissionDenied,
	codes.ResourceExhausted:  errdefs.ErrResourceExhausted,
	codes.FailedPrecondition: errdefs.ErrFailedPrecondition,
	codes.Aborted:            errdefs.ErrAborted,
	codes.Unimplemented:      errdefs.ErrNotImplemented,
	codes.Unavailable:        errdefs.ErrUnavailable,
	codes.Internal:           errdefs.ErrInternal,
	codes.Canceled:           context.Canceled,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
}

// native turns a gRPC status into an *Error; other errors stay as they are.
// The status's details are ignored: nothing of ours sends any.
func native(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return statusError(s.Proto())
	}
	return err
}

func statusError(s *spb.Status) error {
	if codes.Code(s.Code) == codes.OK {
		return nil
	}
	kind := kinds[codes.Code(s.Code)]
	if kind == nil {
		kind = errdefs.ErrUnknown
	}
	return &Error{Message: printable(s.Message), Kind: kind}
}

// printable makes a guest's text harmless for a terminal and a log.
func printable(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxErrorText)], "?")
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
