package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newContainer(a *app) *cobra.Command {
	return group("container", "Manage containers",
		newAttach(a), newCreate(a), newExec(a),
		newInspectOf(a, "container", "inspect [OPTIONS] CONTAINER [CONTAINER...]", "Display detailed information on one or more containers"),
		newKill(a), newLogs(a), as(newPs(a), "ls", "ps", "list"), newPause(a), newContainerPrune(a), newRename(a), newRestart(a),
		as(newRm(a), "rm", "remove"), newRun(a), newStart(a), newStats(a), newStop(a), newTop(a), newUnpause(a), newUpdate(a), newWait(a),
	)
}

func newContainerPrune(a *app) *cobra.Command {
	c := command("prune [OPTIONS]", "Remove all stopped containers", args(0, 0))
	filters := moby.Filters{}
	var force bool
	c.Flags().Var(filterValue(filters), "filter", `Provide filter values (e.g. "until=<timestamp>")`)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	c.RunE = run(func(ctx context.Context, _ []string) error {
		if !force && !a.confirm("WARNING! This will remove all stopped containers.\nAre you sure you want to continue?") {
			return nil
		}
		freed, err := a.pruneContainers(ctx, filters)
		if err != nil {
			return cannot(err, "prune containers")
		}
		a.println("Total reclaimed space:", units.HumanSize(float64(freed)))
		return nil
	})
	return c
}

// pruneContainers removes what is stopped, prints it and returns the bytes freed.
func (a *app) pruneContainers(ctx context.Context, filters moby.Filters) (uint64, error) {
	res, err := a.api().ContainerPrune(ctx, moby.ContainerPruneOptions{Filters: filters})
	if err != nil {
		return 0, err
	}
	if len(res.Report.ContainersDeleted) > 0 {
		a.println("Deleted Containers:")
		for _, id := range res.Report.ContainersDeleted {
			a.println(id)
		}
		a.println()
	}
	return res.Report.SpaceReclaimed, nil
}

// confirm asks a question that only y answers with yes.
func (a *app) confirm(question string) bool {
	fmt.Fprint(a.out, question+" [y/N] ")
	answer, _ := bufio.NewReader(a.in).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}
