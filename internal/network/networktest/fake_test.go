package networktest_test

import (
	"testing"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/networktest"
)

func TestFake(t *testing.T) {
	networktest.Run(t, func(*testing.T) network.Driver { return networktest.NewFake() })
}
