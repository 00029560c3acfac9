// Command echo measures round trips over TCP on the loopback, inside containers:
//
//	echo serve PORT    sends back what it gets, to one after another
//	echo ask PORT N    prints the median of N round trips of 64 bytes, in µs
//
// Its sockets block: a round trip is four system calls, and no scheduler but
// the kernel's.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var numbers []int
	for _, a := range args[min(1, len(args)):] {
		n, err := strconv.Atoi(a)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is no number", a)
		}
		numbers = append(numbers, n)
	}
	switch {
	case len(numbers) == 1 && args[0] == "serve":
		return serve(numbers[0])
	case len(numbers) == 2 && args[0] == "ask":
		return ask(numbers[0], numbers[1])
	}
	return errors.New("want serve PORT or ask PORT N")
}

func socket(port int) (int, *unix.SockaddrInet4, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	return fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}, err
}

func serve(port int) error {
	l, address, err := socket(port)
	if err == nil {
		err = unix.Bind(l, address)
	}
	if err == nil {
		err = unix.Listen(l, 1)
	}
	for err == nil {
		var fd int
		fd, _, err = unix.Accept(l)
		if err == nil {
			sendBack(fd)
		}
	}
	return err
}

// sendBack goes on until the other side ends or fails, which it notices itself.
func sendBack(fd int) {
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) //nolint:errcheck // it only gets slower
	buf := make([]byte, 64)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n == 0 {
			return
		}
		if _, err := unix.Write(fd, buf[:n]); err != nil {
			return
		}
	}
}

func ask(port, n int) error {
	fd, address, err := socket(port)
	if err == nil {
		err = unix.Connect(fd, address)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err != nil {
		return err
	}
	times := make([]time.Duration, n)
	buf := make([]byte, 64)
	for i := range times {
		start := time.Now()
		if _, err := unix.Write(fd, buf); err != nil {
			return err
		}
		for got := 0; got < len(buf); {
			n, err := unix.Read(fd, buf[got:])
			if err != nil || n == 0 {
				return fmt.Errorf("after %d bytes of %d: %w", got, len(buf), errors.Join(err, errors.New("the connection ended")))
			}
			got += n
		}
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	fmt.Printf("%.1f\n", float64(times[n/2].Nanoseconds())/1000)
	return nil
}
