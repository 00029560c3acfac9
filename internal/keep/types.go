package keep

import "time"

// A Role says how a container takes part in its pod's life.
type Role string

// Roles. A pod's main containers start when its init containers have ended
// well, one after the other. A sidecar is started in their row, and when it has
// started the next is; it runs until the main containers have ended.
const (
	RoleMain    Role = ""
	RoleInit    Role = "init"
	RoleSidecar Role = "sidecar"
)

// A Policy says what happens when a container's process ends.
type Policy struct {
	Policy string `json:"policy,omitempty"` // "" and "no", "always", "unless-stopped", "on-failure"
	Max    int    `json:"max,omitempty"`    // of on-failure: how often in a row; 0: for ever
	// The wait before a restart, doubled each time, up to MaxDelay; a run of ResetAfter
	// begins anew. Zero: 100 ms, 1 min, 10 s, as Docker.
	Delay      time.Duration `json:"delay,omitempty"`
	MaxDelay   time.Duration `json:"maxDelay,omitempty"`
	ResetAfter time.Duration `json:"resetAfter,omitempty"`
}
