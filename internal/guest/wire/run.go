package wire

import (
	"context"
	"time"

	"google.golang.org/grpc/status"
)

// RunParts is what an implementation of Run makes of the single calls.
func RunParts(ctx context.Context, s GuestService, r *RunRequest) *RunResponse {
	resp := new(RunResponse)
	for _, part := range []struct {
		name string
		call func() error
	}{
		{"configure", func() error { _, err := s.Configure(ctx, r.Configure); return err }},
		{"create", func() error { _, err := s.CreateContainer(ctx, r.Create); return err }},
		{"start", func() error {
			started, err := s.StartProcess(ctx, r.Start)
			resp.Pid = started.GetPid()
			return err
		}},
	} {
		begin := time.Now()
		if err := part.call(); err != nil {
			st := status.Convert(err)
			resp.Failed, resp.Code, resp.Message = part.name, uint32(st.Code()), st.Message()
			return resp
		}
		resp.TookNanos = append(resp.TookNanos, uint64(time.Since(begin)))
	}
	return resp
}
