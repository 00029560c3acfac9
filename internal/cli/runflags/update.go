package runflags

import (
	"errors"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

// Update are the flags of update. Make one with AddUpdate.
type Update struct{ *Flags }

// AddUpdate declares the flags.
func AddUpdate(fs *pflag.FlagSet) *Update {
	f := &Flags{fs: fs, memorySwap: size{minusOne: true}}
	f.addLimits(fs)
	fs.StringVar(&f.restart, "restart", "", "Restart policy to apply when a container exits")
	addUnsupported(fs, "blkio-weight", "cpu-rt-period", "cpu-rt-runtime", "cpuset-mems", "kernel-memory")
	return &Update{f}
}

// Request is the request that the flags stand for.
func (u *Update) Request() (client.ContainerUpdateOptions, error) {
	var none client.ContainerUpdateOptions
	if u.fs.NFlag() == 0 {
		return none, errors.New("you must provide one or more flags when using this command")
	}
	if err := checkUnsupported(u.fs); err != nil {
		return none, err
	}
	var policy container.RestartPolicy
	if u.restart != "" {
		var err error
		if policy, err = restartPolicy(u.restart); err != nil {
			return none, err
		}
	}
	r := container.Resources{
		Memory: u.memory.n, MemoryReservation: u.memoryReservation.n, MemorySwap: u.memorySwap.n, NanoCPUs: int64(u.cpus),
		CPUShares: u.cpuShares, CPUPeriod: u.cpuPeriod, CPUQuota: u.cpuQuota, CpusetCpus: u.cpusetCPUs,
	}
	if u.fs.Changed("pids-limit") {
		r.PidsLimit = &u.pidsLimit
	}
	return client.ContainerUpdateOptions{Resources: &r, RestartPolicy: &policy}, nil
}
