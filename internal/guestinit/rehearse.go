package guestinit

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// rehearsal is the container that rehearse makes.
const rehearsal = "rehearsal"

// rehearse runs a container without layers, the way hyperd does, and deletes
// it, with another program than spec's: what Go and the kernel make when they first do something (types known
// to codecs, threads, slabs, page tables) is then there for all clones.
func (s *Service) rehearse(ctx context.Context, spec specs.Spec) error {
	if err := warmMessages(); err != nil {
		return err
	}
	if spec.Process == nil {
		return errors.New("rehearse a container: the spec has no process")
	}
	p := *spec.Process
	p.Args = []string{"true"}
	spec.Process = &p
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	b, err := proto.Marshal(&wire.RunRequest{
		Configure: &wire.ConfigureRequest{},
		Create: &wire.CreateContainerRequest{Id: rehearsal, Rootfs: &wire.RootFS{}, Spec: data,
			SeccompFilter: allowAll(),
			Files:         []*wire.File{{Path: "/bin/true", Mode: 0o755, Content: exitProgram()}}},
		Start: &wire.StartProcessRequest{ContainerId: rehearsal},
	})
	if err != nil {
		return err
	}
	r := new(wire.RunRequest)
	if err := proto.Unmarshal(b, r); err != nil {
		return err
	}
	resp := wire.RunParts(ctx, s, r)
	if _, err := proto.Marshal(resp); err != nil {
		return err
	}
	if resp.Failed == "" {
		_, err = s.Wait(ctx, &wire.WaitRequest{ContainerId: rehearsal})
	} else {
		err = fmt.Errorf("%s: %s", resp.Failed, resp.Message)
	}
	if resp.Failed == "" || resp.Failed == "start" {
		_, derr := s.DeleteContainer(ctx, &wire.DeleteContainerRequest{Id: rehearsal})
		err = errors.Join(err, derr)
	}
	if err != nil {
		return fmt.Errorf("rehearse a container: %w", err)
	}
	return nil
}

// warmMessages makes the codecs of all messages of the protocol.
func warmMessages() error {
	all := wire.File_guest_proto.Messages()
	for i := range all.Len() {
		m, err := protoregistry.GlobalTypes.FindMessageByName(all.Get(i).FullName())
		if err != nil {
			return fmt.Errorf("find message %s: %w", all.Get(i).FullName(), err)
		}
		b, err := proto.Marshal(m.New().Interface())
		if err == nil {
			err = proto.Unmarshal(b, m.New().Interface())
		}
		if err != nil {
			return fmt.Errorf("try message %s: %w", all.Get(i).FullName(), err)
		}
	}
	return nil
}

// allowAll is a seccomp filter that allows everything.
func allowAll() []byte {
	b := binary.LittleEndian.AppendUint32(nil, unix.BPF_RET|unix.BPF_K)
	return binary.LittleEndian.AppendUint32(b, unix.SECCOMP_RET_ALLOW)
}

// exitProgram is a program that exits with status 0.
func exitProgram() []byte {
	return program([]byte{0x31, 0xff, 0xb8, unix.SYS_EXIT, 0, 0, 0, 0x0f, 0x05}) // xor edi,edi; mov eax,60; syscall
}
