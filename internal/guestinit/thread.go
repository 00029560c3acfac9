package guestinit

import "runtime"

// onThread runs f on a thread that ends with it, so that what f does to the
// thread (namespaces, root, working directory, umask) ends too.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock
		done <- f()
	}()
	return <-done
}
