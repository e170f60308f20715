package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"dsas"
)

const (
	// streamSilence: the server sends a comment every 15 s; three missing
	// mean that it is gone without a word.
	streamSilence = 50 * time.Second
	streamBackoff = 250 * time.Millisecond // first wait before connecting again
	streamMaxWait = 5 * time.Second
	maxEventLine  = 1 << 20 // bytes
)

// Stream gives the events after the one with ID after, and then those that
// come, for ever; a negative after means: only those that come. A connection
// that breaks is made again, and nothing is lost or given twice. It ends with
// an error when the first connection fails, when the server refuses, or with
// ctx.
func (c *Client) Stream(ctx context.Context, after int64) iter.Seq2[dsas.Event, error] {
	return func(yield func(dsas.Event, error) bool) {
		s := stream{client: c, last: after}
		wait := streamBackoff
		for {
			got, more, err := s.connect(ctx, yield)
			if !more {
				return
			}
			refused, ok := errors.AsType[*Error](err)
			fatal := ok && refused.Status >= 400 && refused.Status < 500
			if ctx.Err() != nil {
				yield(dsas.Event{}, ctx.Err())
				return
			}
			if fatal || !s.connected {
				yield(dsas.Event{}, err)
				return
			}
			if got {
				wait = streamBackoff
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, streamMaxWait)
		}
	}
}

type stream struct {
	client    *Client
	last      int64 // ID of the last event given; negative: none known
	connected bool  // once at least
}

// connect reads one connection to its end. got: anything came; more: the
// reader of the events wants more.
func (s *stream) connect(ctx context.Context, yield func(dsas.Event, error) bool) (got, more bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(streamSilence, func() { cancel(errors.New("the server is silent")) })
	defer silence.Stop()

	q := url.Values{}
	if s.last >= 0 {
		q.Set("after", strconv.FormatInt(s.last, 10))
	}
	resp, err := s.client.send(ctx, http.MethodGet, "/events/stream", q, nil, http.Header{"Accept": {"text/event-stream"}})
	if err != nil {
		return false, true, err
	}
	defer resp.Body.Close()
	s.connected = true

	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEventLine)
	var data strings.Builder
	id := s.last
	for lines.Scan() {
		silence.Reset(streamSilence)
		got = true
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				id = n
			}
		case "data":
			data.WriteString(value)
		case "":
			// A comment has an empty field name too, and is no end of an event.
			if strings.HasPrefix(lines.Text(), ":") {
				continue
			}
			if data.Len() == 0 {
				s.last = id // the server says where the stream begins
				continue
			}
			var e dsas.Event
			if err := json.Unmarshal([]byte(data.String()), &e); err != nil {
				return got, true, fmt.Errorf("event stream: %w", err)
			}
			data.Reset()
			s.last = id
			if !yield(e, nil) {
				return got, false, nil
			}
		}
	}
	return got, true, lines.Err()
}
