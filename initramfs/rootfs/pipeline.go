package rootfs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
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
}

// chunk is a filled buffer; err, io.EOF included, is on the last one only.
type chunk struct {
	buf  []byte
	free chan<- []byte // where the buffer goes when it has been read
	err  error
}

func newPipeline(ctx context.Context) *pipeline {
	p := &pipeline{}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// stop ends the goroutines and waits for them.
func (p *pipeline) stop() {
	p.cancel()
	p.wg.Wait()
}

// produce reads r ahead into count buffers of size bytes.
func (p *pipeline) produce(r io.Reader, count, size int) <-chan chunk {
	out, free := make(chan chunk, count), make(chan []byte, count)
	for range count {
		free <- nil
	}
	p.wg.Go(func() {
		for {
			var buf []byte
			select {
			case buf = <-free:
			case <-p.ctx.Done():
				return
			}
			if buf == nil {
				buf = make([]byte, size)
			}
			// Not io.ReadFull: its ErrUnexpectedEOF would hide a decoder's own.
			var n int
			var err error
			for n < size && err == nil {
				var m int
				m, err = r.Read(buf[n:size])
				n += m
			}
			select {
			case out <- chunk{buf: buf[:n], free: free, err: err}:
			case <-p.ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return out
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
func (p *pipeline) reader(in <-chan chunk) io.Reader { return &chunkReader{p: p, in: in} }

type chunkReader struct {
	p    *pipeline
	in   <-chan chunk
	cur  chunk
	left []byte
}

func (r *chunkReader) Read(b []byte) (int, error) {
	for len(r.left) == 0 {
		if r.cur.err != nil {
			return 0, r.cur.err
		}
		if r.cur.buf != nil {
			r.cur.free <- r.cur.buf // has room for all its buffers
			r.cur.buf = nil
		}
		select {
		case r.cur = <-r.in:
		case <-r.p.ctx.Done():
			return 0, r.p.ctx.Err()
		}
		r.left = r.cur.buf
	}
	n := copy(b, r.left)
	r.left = r.left[n:]
	return n, nil
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

// errTooLong: the stream goes on past what its part may hold.
var errTooLong = errors.New("holds more than the manifest allows for")

// limitedReader fails, other than io.LimitReader, where more would follow.
type limitedReader struct {
	r    io.Reader
	left int64
}

func (l *limitedReader) Read(b []byte) (int, error) {
	if l.left < 0 {
		return 0, errTooLong
	}
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// maxWindow bounds the decoder's memory; zstd --ultra -22 wants 128 MiB.
const maxWindow = 128 << 20

// decompressor finds how a part is compressed from its media type (OCI image
// specification, layer media types, and Docker's names for the same).
func decompressor(media string) (func(io.Reader) (io.Reader, error), error) {
	switch {
	case media == "", strings.HasSuffix(media, "+zstd"), strings.HasSuffix(media, ".zstd"):
		return func(r io.Reader) (io.Reader, error) {
			// One decoder: a second one gains nothing on two processors that
			// also hash and unpack. zstd's own checksum would find what
			// the digest of the same bytes finds.
			d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.IgnoreChecksum(true))
			if err != nil {
				return nil, err
			}
			return d, nil
		}, nil
	case strings.HasSuffix(media, "+gzip"), strings.HasSuffix(media, ".gzip"):
		return func(r io.Reader) (io.Reader, error) {
			z, err := gzip.NewReader(r)
			if err != nil {
				return nil, err
			}
			return z, nil
		}, nil
	case strings.HasSuffix(media, ".tar"):
		return func(r io.Reader) (io.Reader, error) { return r, nil }, nil
	}
	return nil, fmt.Errorf("media type %q: want a tar, plain or with zstd or gzip: %w", media, dsas.ErrInvalid)
}

func digestOf(h hash.Hash) dsas.Digest {
	return dsas.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}
