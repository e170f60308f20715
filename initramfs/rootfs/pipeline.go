package rootfs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"dsas"
)

// pipeline is a row of goroutines that hand buffers on: the work of each
// overlaps with that of the others, and a full row holds the first one back.
type pipeline struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	pool   *pool
	used   [][]byte // blocks to give back in the end; the reading goroutine's
}

// pool keeps blocks that are not in use: each part of an image wants as many as
// the one before, and garbage would stand in memory beside them.
type pool struct {
	mu   sync.Mutex
	free [][]byte
}

func (p *pool) get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	return make([]byte, block)
}

func (p *pool) put(b ...[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range b {
		p.free = append(p.free, b[:block])
	}
}

// chunk is a filled buffer; err, io.EOF included, is on the last one only.
type chunk struct {
	buf  []byte
	free func([]byte) // takes the buffer back when it has been read
	err  error
}

func newPipeline(ctx context.Context, blocks *pool) *pipeline {
	p := &pipeline{pool: blocks}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// stop ends the goroutines and waits for them. What its readers gave is no
// longer to be used.
func (p *pipeline) stop() {
	p.cancel()
	p.wg.Wait()
	p.pool.put(p.used...)
	p.used = nil
}

// produce reads r ahead into count blocks.
func (p *pipeline) produce(r io.Reader, count int) <-chan chunk {
	out := make(chan chunk, count)
	p.wg.Go(func() {
		p.read(r, count, func(c chunk) bool {
			select {
			case out <- c:
				return c.err == nil
			case <-p.ctx.Done():
				return false
			}
		})
	})
	return out
}

// read fills count blocks from r in turn, and gives each to send, until that
// says no.
func (p *pipeline) read(r io.Reader, count int, send func(chunk) bool) {
	free := make(chan []byte, count)
	for range count {
		free <- nil
	}
	giveBack := func(b []byte) { free <- b[:block] } // has room for all its blocks
	for {
		var buf []byte
		select {
		case buf = <-free:
		case <-p.ctx.Done():
			return
		}
		if buf == nil {
			buf = p.pool.get()
			p.used = append(p.used, buf)
		}
		n, err := readFull(r, buf)
		if !send(chunk{buf: buf[:n], free: giveBack, err: err}) {
			return
		}
	}
}

// readFull is io.ReadFull without its ErrUnexpectedEOF, which would hide a
// decoder's own.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// tap hashes what passes.
func (p *pipeline) tap(in <-chan chunk, h hash.Hash) <-chan chunk {
	out := make(chan chunk, 1)
	p.wg.Go(func() {
		for {
			var c chunk
			select {
			case c = <-in:
			case <-p.ctx.Done():
				return
			}
			h.Write(c.buf)
			select {
			case out <- c:
			case <-p.ctx.Done():
				return
			}
			if c.err != nil {
				return
			}
		}
	})
	return out
}

// reader makes a stream of the chunks again and gives their buffers back.
func (p *pipeline) reader(in <-chan chunk) *stream {
	return &stream{p: p, in: in, left: math.MaxInt64}
}

// stream is the chunks as one io.Reader, of at most left bytes: it fails, other
// than io.LimitedReader, where more would follow.
type stream struct {
	p    *pipeline
	in   <-chan chunk
	cur  chunk
	rest []byte // of cur, not yet given
	left int64
	// owed are bytes that take gave and that a Read is yet to pass over.
	owed int64
}

// errTooLong: the stream goes on past what its part may hold.
var errTooLong = errors.New("holds more than the manifest allows for")

// Read implements io.Reader.
func (s *stream) Read(b []byte) (int, error) {
	if s.owed > 0 {
		n := min(int64(len(b)), s.owed)
		s.owed -= n
		return int(n), nil
	}
	got, err := s.next(len(b))
	return copy(b, got), err
}

// take gives the next bytes, between one and n, where they lie, until the next
// call of any method. It is for the content of a tar's entry: a tar.Reader
// copies it, and passes over what it was not asked for with its next header.
// What take gave, a Read passes over once more, with nothing copied, so that
// the tar.Reader stays where it thinks it is.
func (s *stream) take(n int64) ([]byte, error) {
	got, err := s.next(int(min(n, 1<<30)))
	s.owed += int64(len(got))
	return got, err
}

func (s *stream) next(n int) ([]byte, error) {
	for len(s.rest) == 0 {
		if s.cur.err != nil {
			return nil, s.cur.err
		}
		if s.cur.buf != nil {
			s.cur.free(s.cur.buf)
			s.cur.buf = nil
		}
		select {
		case s.cur = <-s.in:
		case <-s.p.ctx.Done():
			return nil, s.p.ctx.Err()
		}
		s.rest = s.cur.buf
	}
	n = min(n, len(s.rest))
	if int64(n) > s.left {
		return nil, errTooLong
	}
	got := s.rest[:n]
	s.rest, s.left = s.rest[n:], s.left-int64(n)
	return got, nil
}

// lazyReader opens its source at the first Read, in the goroutine that reads:
// opening reads already.
type lazyReader struct {
	open func() (io.Reader, error)
	r    io.Reader
	err  error
}

func (l *lazyReader) Read(b []byte) (int, error) {
	if l.r == nil && l.err == nil {
		l.r, l.err = l.open()
	}
	if l.err != nil {
		return 0, l.err
	}
	return l.r.Read(b)
}

const (
	// netBlocks are those between the network and the decoder.
	netBlocks = 8
	// tarBlocks lie between the decoder and the unpacker. Of the same size, and
	// no larger: 8 of 1 MiB each were slower, being out of the caches when they are
	// written.
	tarBlocks = 12
	// maxWindow bounds the decoder's memory. Levels to 20 want no more; what is
	// made with 21, 22 or --long is refused, and told so.
	maxWindow = 32 << 20
)

// decoders open what parts are compressed with. They and their windows serve all
// parts, one after the other.
type decoders struct {
	frames *frameDecoder // zstd in small frames, as our images have it
	zstd   *zstd.Decoder // any other
}

func (d *decoders) close() {
	if d.frames != nil {
		d.frames.zstd.Close()
	}
	if d.zstd != nil {
		d.zstd.Close()
	}
}

func (d *decoders) openZstd(r io.Reader) (io.Reader, error) {
	if d.zstd != nil {
		return zstdReader{d.zstd}, d.zstd.Reset(r)
	}
	// One decoder: a second one gains nothing within one stream on two processors that
	// also hash and unpack. zstd's own checksum would find what the digest of the
	// same bytes finds.
	var err error
	d.zstd, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.IgnoreChecksum(true))
	return zstdReader{d.zstd}, err
}

// decoder gives the content of what r has, in chunks.
type decoder func(p *pipeline, r io.Reader) (<-chan chunk, error)

// forMedia finds how a part is compressed from its media type (OCI image
// specification, layer media types, and Docker's names for the same).
func (d *decoders) forMedia(media string) (decoder, error) {
	switch {
	case media == "", strings.HasSuffix(media, "+zstd"), strings.HasSuffix(media, ".zstd"):
		return d.decompress, nil
	case strings.HasSuffix(media, "+gzip"), strings.HasSuffix(media, ".gzip"):
		return streamed(func(r io.Reader) (io.Reader, error) {
			z, err := gzip.NewReader(r)
			if err != nil {
				return nil, err
			}
			return z, nil
		}), nil
	case strings.HasSuffix(media, ".tar"):
		return streamed(func(r io.Reader) (io.Reader, error) { return r, nil }), nil
	}
	return nil, fmt.Errorf("media type %q: want a tar, plain or with zstd or gzip: %w", media, dsas.ErrInvalid)
}

// streamed decodes by one reader.
func streamed(open func(io.Reader) (io.Reader, error)) decoder {
	return func(p *pipeline, r io.Reader) (<-chan chunk, error) {
		return p.produce(&lazyReader{open: func() (io.Reader, error) { return open(r) }}, tarBlocks), nil
	}
}

// zstdReader says what to do about a window that is too large.
type zstdReader struct{ *zstd.Decoder }

func (r zstdReader) Read(b []byte) (int, error) {
	n, err := r.Decoder.Read(b)
	return n, windowError(err)
}

func windowError(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return fmt.Errorf("its zstd wants a window of more than %d MiB, made with --long or a level above 20: compress it with less: %w", maxWindow>>20, err)
	}
	return err
}

func digestOf(h hash.Hash) dsas.Digest {
	return dsas.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}
