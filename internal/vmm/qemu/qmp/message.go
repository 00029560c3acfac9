package qmp

import (
	"encoding/json"
	"errors"
	"fmt"
)

type kind int

const (
	kindGreeting kind = iota + 1
	kindReply
	kindEvent
)

// message is anything that QEMU sends. Only the fields of its kind are set.
type message struct {
	kind    kind
	version Version         // greeting
	event   Event           // event
	id      uint64          // reply
	result  json.RawMessage // reply that succeeded
	err     *Error          // reply that did not
}

// decode parses one line. It copies what it keeps.
func decode(line []byte) (message, error) {
	var raw struct {
		QMP *struct {
			Version struct {
				QEMU Version `json:"qemu"`
			} `json:"version"`
		} `json:"QMP"`
		Event  *string         `json:"event"`
		Data   json.RawMessage `json:"data"`
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
		ID     *uint64         `json:"id"`
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		return message{}, fmt.Errorf("message from QEMU: %w", err)
	}
	switch {
	case raw.QMP != nil:
		return message{kind: kindGreeting, version: raw.QMP.Version.QEMU}, nil
	case raw.Event != nil:
		return message{kind: kindEvent, event: Event{Name: *raw.Event, Data: raw.Data}}, nil
	case raw.Error != nil && raw.ID == nil:
		// QEMU could not parse what it got, and so cannot say whose it was.
		return message{}, fmt.Errorf("QEMU did not understand: %w", raw.Error)
	case raw.ID == nil:
		return message{}, errors.New("message from QEMU is neither greeting, event nor reply")
	case raw.Error != nil:
		return message{kind: kindReply, id: *raw.ID, err: raw.Error}, nil
	case raw.Return != nil:
		return message{kind: kindReply, id: *raw.ID, result: raw.Return}, nil
	}
	return message{}, errors.New("reply from QEMU has neither return nor error")
}
