package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	"github.com/hyper-run/hyper/internal/pod"
)

func (a *api) update(c *call) error {
	var req container.UpdateConfig
	if err := c.decode(&req); err != nil {
		return err
	}
	if c.before(40) {
		req.PidsLimit = nil
	}
	if err := refuse("", req.Resources, resourceRules); err != nil {
		return err
	}
	policy, err := restartPolicy(req.RestartPolicy)
	if err != nil {
		return err
	}
	if len(req.Ulimits) > 0 {
		return invalid("Ulimits can't be changed while the container exists")
	}
	ct, err := a.Containers.Get(c.name)
	if err != nil {
		return err
	}
	if ct.Spec.AutoRemove && !req.RestartPolicy.IsNone() {
		return conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	res := resources(ct.Spec.Resources, req.Resources)
	if err := setIO(&res.IO, req.Resources); err != nil {
		return err
	}
	if err := a.Containers.Update(c.ctx(), ct.ID, res); err != nil {
		return err
	}
	if req.RestartPolicy.Name != "" {
		if err := a.Containers.SetRestart(c.ctx(), ct.ID, policy); err != nil {
			return err
		}
	}
	return c.json(http.StatusOK, container.UpdateResponse{Warnings: []string{}})
}

// resources maps limits onto those there are; what is zero stays.
func resources(r pod.Resources, from container.Resources) pod.Resources {
	set := func(dst *int64, v int64) {
		if v != 0 {
			*dst = v
		}
	}
	set(&r.MemoryBytes, from.Memory)
	set(&r.MemorySwapBytes, from.MemorySwap)
	set(&r.MemoryReservationBytes, from.MemoryReservation)
	set(&r.NanoCPUs, from.NanoCPUs)
	set(&r.CPUQuotaUs, from.CPUQuota)
	if from.CPUShares > 0 {
		r.CPUShares = uint64(from.CPUShares)
	}
	if from.CPUPeriod > 0 {
		r.CPUPeriodUs = uint64(from.CPUPeriod)
	}
	if from.CpusetCpus != "" {
		r.CPUSet = from.CpusetCpus
	}
	if from.PidsLimit != nil {
		r.PIDs = max(*from.PidsLimit, 0)
	}
	return r
}

// setRestart maps a restart policy, in Docker's words when it can't be.
func setRestart(s *pod.Spec, req *container.CreateRequest) error {
	p := req.HostConfig.RestartPolicy
	var err error
	if s.Restart, err = restartPolicy(p); err != nil {
		return err
	}
	if req.HostConfig.AutoRemove && !p.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

func restartPolicy(p container.RestartPolicy) (pod.RestartPolicy, error) {
	if err := container.ValidateRestartPolicy(p); err != nil {
		return pod.RestartPolicy{}, invalid("%v", err)
	}
	if p.IsNone() {
		return pod.RestartPolicy{}, nil
	}
	return pod.RestartPolicy{Policy: string(p.Name), Max: p.MaximumRetryCount}, nil
}

// setIO maps limits of disk I/O. A container has one disk, its own, called "/".
func setIO(l *pod.IOLimit, from container.Resources) error {
	for _, t := range []struct {
		field string
		list  []*blkiodev.ThrottleDevice
		to    *uint64
	}{
		{"BlkioDeviceReadBps", from.BlkioDeviceReadBps, &l.ReadBytes}, {"BlkioDeviceWriteBps", from.BlkioDeviceWriteBps, &l.WriteBytes},
		{"BlkioDeviceReadIOps", from.BlkioDeviceReadIOps, &l.Reads}, {"BlkioDeviceWriteIOps", from.BlkioDeviceWriteIOps, &l.Writes},
	} {
		for _, d := range t.list {
			switch {
			case d == nil:
			case d.Path != "/":
				return invalid(`HostConfig.%s: %s can't be limited, only /, the container's own disk`, t.field, d.Path)
			default:
				*t.to = d.Rate
			}
		}
	}
	return nil
}
