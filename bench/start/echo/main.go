// Command echo measures round trips over TCP, inside containers:
//
//	echo serve ADDRESS    sends back what it gets
//	echo ask ADDRESS N    prints the median of N round trips of 64 bytes, in µs
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 3 && args[0] == "ask":
		n, err := strconv.Atoi(args[2])
		if err != nil || n < 1 {
			return fmt.Errorf("%q round trips", args[2])
		}
		return ask(args[1], n)
	}
	return errors.New("want serve ADDRESS or ask ADDRESS N")
}

func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			io.Copy(c, c) //nolint:errcheck // who asked notices
		}()
	}
}

func ask(address string, n int) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	times := make([]time.Duration, n)
	buf := make([]byte, 64)
	for i := range times {
		start := time.Now()
		if _, err := c.Write(buf); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	fmt.Printf("%.1f\n", float64(times[n/2].Nanoseconds())/1000)
	return nil
}
