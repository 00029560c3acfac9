// Package testguest is the guest that the conformance suite of VMM drivers
// talks to: a loop that obeys lines. It runs as PID 1 of a real VM
// (testguest/init) and inside vmmtest.Fake.
//
// A request is "TOKEN COMMAND ARGUMENT…", an answer "TOKEN TEXT…", each a
// line. The token tells an answer from one to an earlier connection. It uses
// the standard library only, since under emulation every byte counts.
package testguest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Machine is what the guest runs on.
type Machine interface {
	// OpenDisk opens the disk with this serial.
	OpenDisk(id string, flags int) (Disk, error)
	// Console prints a line on the kernel's console.
	Console(line string) error
	// Fact answers "cpus", "macs" or "clocksource".
	Fact(name string) string
	// Remember keeps a text in the machine's memory, Recall returns it.
	Remember(text string)
	Recall() string
	// Stop ends the machine: "poweroff", "reboot" or "panic". It may return.
	Stop(how string)
}

// A Disk is an open disk; an *os.File is one.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	io.Seeker
	io.Closer
	Sync() error
}

// Serve obeys what comes in on conn until that ends or the machine stops.
func Serve(conn io.ReadWriter, m Machine) (stopped bool) {
	in := bufio.NewScanner(conn)
	for in.Scan() {
		token, request, _ := strings.Cut(in.Text(), " ")
		command, arg, _ := strings.Cut(request, " ")
		switch command {
		case "poweroff", "reboot", "panic":
			if d, err := time.ParseDuration(arg); err == nil {
				fmt.Fprintf(conn, "%s soon\n", token)
				time.Sleep(d)
			}
			m.Stop(command)
			return true
		}
		text, err := obey(m, command, arg)
		if err != nil {
			text = "error: " + err.Error()
		}
		if _, err := fmt.Fprintf(conn, "%s %s\n", token, text); err != nil {
			return false
		}
	}
	return false
}

func obey(m Machine, command, arg string) (string, error) {
	switch command {
	case "echo":
		return arg, nil
	case "console":
		return "ok", m.Console(arg)
	case "fact":
		return m.Fact(arg), nil
	case "remember":
		m.Remember(arg)
		return "ok", nil
	case "recall":
		return m.Recall(), nil
	case "write":
		id, text, _ := strings.Cut(arg, " ")
		return "ok", write(m, id, text)
	case "read":
		id, offset, _ := strings.Cut(arg, " ")
		return read(m, id, offset)
	case "size":
		return size(m, arg)
	}
	return "", fmt.Errorf("no command %q", command)
}

// write puts text at the start of a disk, and onto it for good.
func write(m Machine, id, text string) error {
	d, err := m.OpenDisk(id, os.O_RDWR)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.WriteAt([]byte(text+"\n"), 0); err != nil {
		return err
	}
	return d.Sync()
}

// read returns the line at an offset of a disk ("": the start), without the
// zeros at its end; it is in one block.
func read(m Machine, id, offset string) (string, error) {
	at, err := strconv.ParseInt("0"+offset, 10, 64)
	if err != nil {
		return "", err
	}
	d, err := m.OpenDisk(id, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer d.Close()
	block := make([]byte, 4096)
	if _, err := d.ReadAt(block, at); err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(block), "\n")
	return strings.TrimRight(line, "\x00"), nil
}

func size(m Machine, id string) (string, error) {
	d, err := m.OpenDisk(id, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer d.Close()
	n, err := d.Seek(0, io.SeekEnd)
	return fmt.Sprint(n), err
}
