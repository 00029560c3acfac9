package pod

// checks are what is done to a running container to see that it is well: its
// hook after the start, then its probes. Nil: nothing is.
type checks struct{}

// state is what the keeper asks for.
func (k *checks) state() (started, failing bool, grace *int) { return true, false, nil }

// view is what others see of it.
func (k *checks) view() (started, ready bool, failed string) { return true, true, "" }
