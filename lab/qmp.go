package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmpTimeout bounds one command; QEMU answers at once unless it hangs.
const qmpTimeout = 20 * time.Second

// qmp is a connection to a QEMU monitor: one JSON object a line; a greeting,
// then qmp_capabilities, then commands, answered in order, with events in
// between ("QEMU Machine Protocol Specification" in QEMU's documentation).
type qmp struct {
	mu      sync.Mutex // one command at a time
	conn    net.Conn
	answers chan qmpAnswer // closed with the connection
}

type qmpAnswer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

// dialQMP connects as soon as QEMU listens at path, until ctx ends or the
// process does (gone). Events go to onEvent, by name.
func dialQMP(ctx context.Context, path string, gone <-chan struct{}, onEvent func(string)) (*qmp, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			q := &qmp{conn: c, answers: make(chan qmpAnswer, 1)}
			go q.read(onEvent)
			if err := q.do(ctx, "qmp_capabilities", nil, nil); err != nil {
				c.Close()
				return nil, err
			}
			return q, nil
		}
		select {
		case <-tick.C:
		case <-gone:
			return nil, errors.New("QEMU ended at once")
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to QEMU's monitor: %w: %w", ctx.Err(), err)
		}
	}
}

func (q *qmp) read(onEvent func(string)) {
	defer close(q.answers)
	r := bufio.NewReader(q.conn)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var a qmpAnswer
		if json.Unmarshal(line, &a) != nil {
			continue
		}
		switch {
		case a.Event != "":
			onEvent(a.Event)
		case a.Return != nil || a.Error != nil:
			q.answers <- a
		} // else the greeting
	}
}

// do runs a command; args and result may be nil. After a failure to answer
// in time the connection is closed: a late answer would be taken for the next
// command's.
func (q *qmp) do(ctx context.Context, command string, args, result any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	q.conn.SetWriteDeadline(time.Now().Add(qmpTimeout))
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case a, ok := <-q.answers:
		switch {
		case !ok:
			return fmt.Errorf("QMP %s: QEMU closed the connection", command)
		case a.Error != nil:
			return fmt.Errorf("QMP %s: %s (%s)", command, a.Error.Desc, a.Error.Class)
		case result != nil:
			return json.Unmarshal(a.Return, result)
		}
		return nil
	case <-ctx.Done():
		q.conn.Close()
		return fmt.Errorf("QMP %s: %w", command, ctx.Err())
	}
}

func (q *qmp) close() { q.conn.Close() }
