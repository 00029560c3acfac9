package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAwait(t *testing.T) {
	absent := status.Error(codes.NotFound, "no process")
	other := status.Error(codes.Internal, "broken")
	for name, tt := range map[string]struct {
		answers []error // of find, the last for ever
		ends    int     // calls that end
		want    error
		took    time.Duration
	}{
		"there":           {[]error{nil}, 0, nil, 0},
		"started":         {[]error{absent, absent, nil}, 2, nil, 2 * time.Second},
		"another error":   {[]error{absent, other}, 1, other, time.Second},
		"never started":   {[]error{absent}, 3, absent, awaitTimeout},
		"nothing happens": {[]error{absent}, 0, absent, awaitTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newAwaiter()
				go func() {
					for range tt.ends {
						time.Sleep(time.Second)
						w.callEnded()
					}
				}()
				begin := time.Now()
				err := w.await(context.Background(), func() error {
					err := tt.answers[0]
					if len(tt.answers) > 1 {
						tt.answers = tt.answers[1:]
					}
					return err
				})
				if took := time.Since(begin); err != tt.want || took != tt.took {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := newAwaiter().await(ctx, func() error { return absent }); err != absent {
		t.Errorf("cancelled: %v", err)
	}
}
