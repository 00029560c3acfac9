package hyperd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/image"
	"github.com/hyper-run/hyper/internal/kube"
	"github.com/hyper-run/hyper/internal/pod"
)

// play makes the pods of a pod file: all or none. What can be found out to be
// wrong, missing images too, is before anything is made or removed.
func (d *daemon) play(ctx context.Context, data []byte, o api.PlayOptions) (made []pod.PodInfo, warnings []string, err error) {
	node, err := os.Hostname()
	if err != nil {
		return nil, nil, err
	}
	file, err := kube.Parse(data, kube.Options{
		File: o.File, Node: node, CPUs: d.cfg.CPUs, MemoryBytes: int64(d.cfg.MemMiB) << 20, DiskBytes: pod.DefaultDiskBytes,
	})
	if err != nil {
		return nil, nil, err
	}
	all, err := d.podOptions(ctx, file)
	if err != nil {
		return nil, nil, err
	}
	old, err := d.playable(all, o.Replace)
	if err != nil {
		return nil, nil, err
	}
	for id, name := range old {
		if err := d.pods.RemovePod(ctx, id, true); err != nil && !errdefs.IsNotFound(err) {
			return nil, nil, fmt.Errorf("replace pod %s: %w", name, err)
		}
	}
	made, err = d.playAll(ctx, all, o)
	return made, file.Warnings, err
}

// playable says whether all these pods can be made, and which are to be replaced by them: names by IDs.
func (d *daemon) playable(all []pod.PodOptions, replace bool) (old map[string]string, err error) {
	old = map[string]string{}
	for i := range all {
		name := all[i].Name
		if err := d.pods.CheckPod(&all[i]); err != nil {
			return nil, fmt.Errorf("pod %s: %w", name, err)
		}
		p, err := d.pods.GetPod(name)
		switch {
		case err != nil || p.Name != name: // that of a container, or the beginning of an ID
		case !replace:
			return nil, fmt.Errorf("pod %s exists already; remove it, or replace it: %w", name, errdefs.ErrAlreadyExists)
		default:
			old[p.ID] = name
		}
	}
	if len(old) == 0 {
		return nil, nil // nothing is lost by trying
	}
	for _, o := range all {
		for _, c := range o.Containers {
			other, err := d.pods.Get(c.Name)
			if err == nil && other.Name == c.Name && old[other.PodID] == "" {
				return nil, fmt.Errorf("pod %s: a container %s exists already, which is not of a pod that is replaced: %w", o.Name, c.Name, errdefs.ErrAlreadyExists)
			}
		}
	}
	return old, nil
}

func (d *daemon) playAll(ctx context.Context, all []pod.PodOptions, o api.PlayOptions) (_ []pod.PodInfo, err error) {
	var ids []string
	for _, p := range all {
		id, err := d.pods.CreatePod(ctx, p)
		if err != nil {
			err = fmt.Errorf("pod %s: %w", p.Name, err)
			for _, id := range ids {
				err = errors.Join(err, d.pods.RemovePod(context.WithoutCancel(ctx), id, true))
			}
			return nil, err
		}
		ids = append(ids, id)
	}
	var g errgroup.Group
	if !o.Create {
		for _, id := range ids {
			g.Go(func() error { return d.pods.StartPod(ctx, id, o.Wait) })
		}
	}
	err = g.Wait()
	infos := make([]pod.PodInfo, 0, len(ids))
	for _, id := range ids {
		info, gerr := d.pods.GetPod(id)
		if errdefs.IsNotFound(gerr) {
			continue // it was over at once
		}
		err = errors.Join(err, gerr)
		infos = append(infos, info)
	}
	return infos, err
}

// podOptions completes the pods of a file with what their images say.
func (d *daemon) podOptions(ctx context.Context, file *kube.File) ([]pod.PodOptions, error) {
	got := map[string]image.Image{}
	var all []pod.PodOptions
	for _, p := range file.Pods {
		o := pod.PodOptions{Name: p.Name, Spec: p.Spec}
		o.Spec.UntilDone = true
		for i := range p.Containers {
			c := &p.Containers[i]
			img, ok := got[c.Image]
			if !ok {
				var err error
				if img, err = d.imageFor(ctx, c); err != nil {
					return nil, fmt.Errorf("pod %s: container %s: %w", p.Name, c.Name, err)
				}
				got[c.Image] = img
			}
			from := img.Config.Config
			sp, err := c.Complete(kube.ImageConfig{
				Entrypoint: from.Entrypoint, Cmd: from.Cmd, Env: from.Env, Dir: from.WorkingDir, User: from.User, StopSignal: from.StopSignal,
			})
			if err != nil {
				return nil, err
			}
			sp.ImageID, sp.Layers = img.ID.String(), img.Layers()
			o.Containers = append(o.Containers, pod.CreateOptions{Name: c.Unique, Spec: sp})
		}
		all = append(all, o)
	}
	return all, nil
}

// imageFor gets a container's image, from its registry if its policy says so.
func (d *daemon) imageFor(ctx context.Context, c *kube.Container) (image.Image, error) {
	if c.Pull != kube.PullAlways {
		img, err := d.images.Resolve(ctx, c.Image)
		if err == nil || !errdefs.IsNotFound(err) || c.Pull == kube.PullNever {
			return img, err
		}
	}
	img, err := d.images.Pull(ctx, c.Image, image.PullOptions{})
	if err != nil {
		return img, fmt.Errorf("pull %s: %w", c.Image, err)
	}
	return img, nil
}
