package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"dsas"
)

const (
	firstPause = 250 * time.Millisecond
	mostPause  = 10 * time.Second
	// refusals in a row after which the server is believed that it does not
	// have the content: waiting will not bring it, a new manifest may.
	maxRefusals = 10
)

// StatusError: the server answered, again and again, that it will not give a part.
type StatusError struct {
	Part   int // counted from 0
	Title  string
	Digest dsas.Digest
	Status string // "404 Not Found"
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("part %d (%s, %s): the server answers %s: is the image still published there?",
		e.Part+1, e.Title, e.Digest.Short(), e.Status)
}

var errStalled = errors.New("no byte came for too long")

// blob reads one part over as many connections as it takes.
type blob struct {
	ctx   context.Context
	o     Options
	index int
	part  dsas.Part
	url   string
	log   *slog.Logger

	off     int64 // bytes given to the reader
	until   int64 // where Read ends for now: the part's size, or less while it is fetched ahead
	resumes int
	fatal   error // why no further try makes sense

	body     io.ReadCloser
	cancel   context.CancelCauseFunc // of the connection
	reqCtx   context.Context
	timer    *time.Timer
	pause    time.Duration
	refusals int
	short    int // times that the whole answer was shorter than the part
}

func newBlob(ctx context.Context, o Options, index int, part dsas.Part) *blob {
	return &blob{
		ctx: ctx, o: o, index: index, part: part, until: part.Size,
		url:   strings.TrimRight(o.BaseURL, "/") + "/v2/dsas/" + url.PathEscape(o.Manifest.Role) + "/blobs/" + string(part.Digest),
		log:   o.Log.With("part", index+1, "digest", part.Digest.Short()),
		pause: firstPause,
	}
}

// Read implements io.Reader: io.EOF after exactly until bytes, and no error
// before that but ctx's and those in fatal.
func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.off == b.until {
			b.close()
			return 0, io.EOF
		}
		if b.fatal != nil { // when it was fetched ahead
			return 0, b.fatal
		}
		if err := b.ctx.Err(); err != nil {
			b.close()
			return 0, err
		}
		n, err := b.try(p[:min(int64(len(p)), b.until-b.off)])
		if n > 0 {
			b.off += int64(n)
			b.pause, b.refusals, b.short = firstPause, 0, 0
			return n, nil
		}
		if err == nil {
			continue
		}
		b.close()
		if b.fatal != nil {
			return 0, b.fatal
		}
		if b.ctx.Err() != nil {
			return 0, b.ctx.Err()
		}
		b.log.Warn("transfer interrupted", "err", err, "at", b.off, "of", b.part.Size, "again_in", b.pause)
		b.resumes++
		if err := b.o.Sleep(b.ctx, b.pause/2+rand.N(b.pause)); err != nil {
			return 0, err
		}
		b.pause = min(2*b.pause, mostPause)
	}
}

// try reads from the connection there is, or makes one.
func (b *blob) try(p []byte) (int, error) {
	if b.body == nil {
		if err := b.connect(); err != nil {
			return 0, err
		}
	}
	n, err := b.read(p)
	if n > 0 {
		return n, nil // an error comes again with the next Read
	}
	if errors.Is(err, io.EOF) {
		return 0, b.tooShort()
	}
	return 0, err
}

// read is one Read of the body under the stall timer. The timer does not run
// while nobody reads: a slow unpacking is no stall.
func (b *blob) read(p []byte) (int, error) {
	b.timer.Reset(b.o.Stall)
	n, err := b.body.Read(p)
	b.timer.Stop()
	if err != nil && b.ctx.Err() == nil && b.reqCtx.Err() != nil {
		err = context.Cause(b.reqCtx)
	}
	return n, err
}

func (b *blob) close() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	if b.cancel != nil {
		b.timer.Stop()
		b.cancel(context.Canceled)
		b.cancel = nil
	}
}

// connect asks for the part from off on.
func (b *blob) connect() error {
	var cancel context.CancelCauseFunc
	b.reqCtx, cancel = context.WithCancelCause(b.ctx)
	b.cancel = cancel
	stall := b.o.Stall
	b.timer = time.AfterFunc(stall, func() { cancel(fmt.Errorf("%w (%s)", errStalled, stall)) })
	req, err := http.NewRequestWithContext(b.reqCtx, http.MethodGet, b.url, nil)
	if err != nil {
		b.fatal = fmt.Errorf("part %d: url %q: %w", b.index+1, b.url, err)
		return b.fatal
	}
	// The digest is of the bytes as they are: no compression on the way.
	req.Header.Set("Accept-Encoding", "identity")
	if b.off > 0 || b.until < b.part.Size {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.until-1))
	}
	resp, err := b.o.Client.Do(req)
	if err != nil {
		if b.ctx.Err() == nil && b.reqCtx.Err() != nil {
			err = context.Cause(b.reqCtx)
		}
		return err
	}
	b.timer.Stop()
	b.body = resp.Body
	total, skip, err := b.answer(resp)
	if err != nil {
		return err
	}
	if total >= 0 && total != b.part.Size {
		b.fatal = &SizeError{Part: b.index, Title: b.part.Title, Want: b.part.Size, Got: total}
		return b.fatal
	}
	return b.skip(skip)
}

// answer reads the status: the whole content's size (-1: not said) and how
// many bytes of the body we have already.
func (b *blob) answer(resp *http.Response) (total, skip int64, err error) {
	switch s := resp.StatusCode; {
	case s == http.StatusOK: // no Range asked, or one that was ignored
		return resp.ContentLength, b.off, nil
	case s == http.StatusPartialContent:
		from, total, err := contentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return 0, 0, err
		}
		if from > b.off {
			return 0, 0, fmt.Errorf("asked for bytes from %d on, got them from %d on", b.off, from)
		}
		return total, b.off - from, nil
	case s == http.StatusRequestedRangeNotSatisfiable:
		if _, total, err := contentRange(resp.Header.Get("Content-Range")); err == nil && total >= 0 && total != b.part.Size {
			return total, 0, nil
		}
		fallthrough
	case s >= 400 && s < 500 && s != http.StatusRequestTimeout && s != http.StatusTooManyRequests:
		if b.refusals++; b.refusals >= maxRefusals {
			b.fatal = &StatusError{Part: b.index, Title: b.part.Title, Digest: b.part.Digest, Status: resp.Status}
			return 0, 0, b.fatal
		}
	}
	return 0, 0, fmt.Errorf("server answers %s", resp.Status)
}

// skip passes over bytes that an answer repeats.
func (b *blob) skip(n int64) error {
	if n == 0 {
		return nil
	}
	buf := make([]byte, min(n, 64<<10))
	for n > 0 {
		got, err := b.read(buf[:min(n, int64(len(buf)))])
		n -= int64(got)
		if err != nil && n > 0 {
			if errors.Is(err, io.EOF) {
				return b.tooShort()
			}
			return fmt.Errorf("pass over what is here already: %w", err)
		}
	}
	return nil
}

// tooShort counts the answers that ended, whole by their own word, before the
// part did: one may be a proxy's fault.
func (b *blob) tooShort() error {
	if b.short++; b.short > 2 {
		b.fatal = &SizeError{Part: b.index, Title: b.part.Title, Want: b.part.Size, Got: b.off}
		return b.fatal
	}
	return io.ErrUnexpectedEOF
}

// contentRange reads "bytes 5-9/10" and "bytes */10" (RFC 9110 section
// 14.4); total is -1 where it is not said.
func contentRange(h string) (from, total int64, err error) {
	rest, ok := strings.CutPrefix(h, "bytes ")
	span, size, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return 0, 0, fmt.Errorf("header Content-Range %.60q cannot be read", h)
	}
	total = -1
	if size != "*" {
		if total, err = strconv.ParseInt(size, 10, 64); err != nil || total < 0 {
			return 0, 0, fmt.Errorf("header Content-Range %.60q: bad size", h)
		}
	}
	if span == "*" {
		return 0, total, nil
	}
	first, _, _ := strings.Cut(span, "-")
	if from, err = strconv.ParseInt(first, 10, 64); err != nil || from < 0 {
		return 0, 0, fmt.Errorf("header Content-Range %.60q: bad start", h)
	}
	return from, total, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
