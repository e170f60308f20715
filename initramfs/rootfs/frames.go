package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"dsas/internal/zframes"
)

// maxDecoders is how many frames are decompressed at once. Two are faster than what
// they give can be written; each wants memory for its content and what it is made of.
const maxDecoders = 2

// frameDecoder decompresses parts that are made of small frames (zframes), several
// at once. It and its buffers serve all parts, one after the other.
type frameDecoder struct {
	zstd  *zstd.Decoder
	slots []*slot
	free  chan *slot // those of slots that are
	count int        // frames at once
}

// slot is a frame on its way: packed is decompressed into plain.
type slot struct {
	packed, plain []byte
	size          int
	done          chan error // what became of it
}

func newFrameDecoder() (*frameDecoder, error) {
	n := min(maxDecoders, runtime.GOMAXPROCS(0))
	// zstd's own checksum would find what the digest of the same bytes finds.
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(n), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(2*zframes.Size), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, err
	}
	// One is unpacked meanwhile.
	d := &frameDecoder{zstd: z, slots: make([]*slot, n+1), free: make(chan *slot, n+1), count: n}
	for i := range d.slots {
		// All at once: of what is not written to, no memory is used, and what is outgrown
		// would be garbage.
		d.slots[i] = &slot{packed: make([]byte, 0, zframes.MaxPacked), done: make(chan error, 1)}
	}
	return d, nil
}

// begin makes all slots free, whoever had them: a part before that was given up.
func (d *frameDecoder) begin() {
	for len(d.free) > 0 {
		<-d.free
	}
	for _, s := range d.slots {
		select {
		case <-s.done:
		default:
		}
		d.free <- s
	}
}

// work decompresses frames.
func (d *frameDecoder) work(todo <-chan *slot) {
	for s := range todo {
		if s.plain == nil {
			s.plain = make([]byte, 0, zframes.Size+64) // the decoder writes a little beyond what it needs
		}
		var err error
		s.plain, err = d.zstd.DecodeAll(s.packed, s.plain[:0])
		if err == nil && len(s.plain) != s.size {
			err = fmt.Errorf("a frame holds %d bytes, and says %d", len(s.plain), s.size)
		}
		s.done <- windowError(err)
	}
}

// decompress gives what zstd in r holds. Where it is not, or no longer, made of
// small frames, one decoder reads the rest as one stream.
func (d *decoders) decompress(p *pipeline, r io.Reader) (<-chan chunk, error) {
	if d.frames == nil {
		var err error
		if d.frames, err = newFrameDecoder(); err != nil {
			return nil, err
		}
	}
	f := d.frames
	f.begin()
	out := make(chan chunk)
	todo := make(chan *slot, f.count)
	order := make(chan *slot, len(f.slots)) // as they are to be given; has room for all
	var rest io.Reader                      // what todo's sender leaves over
	var end error

	for range f.count {
		p.wg.Go(func() { f.work(todo) })
	}
	p.wg.Go(func() {
		defer close(order)
		defer close(todo)
		for {
			var s *slot
			select {
			case s = <-f.free:
			case <-p.ctx.Done():
				end = p.ctx.Err()
				return
			}
			s.packed, s.size, end = zframes.Next(r, s.packed[:0])
			if end != nil {
				if errors.Is(end, zframes.ErrOther) {
					rest = io.MultiReader(bytes.NewReader(bytes.Clone(s.packed)), r)
				}
				f.free <- s
				return
			}
			order <- s
			todo <- s
		}
	})
	send := func(c chunk) bool {
		select {
		case out <- c:
			return c.err == nil
		case <-p.ctx.Done():
			if c.free != nil {
				c.free(c.buf)
			}
			return false
		}
	}
	p.wg.Go(func() {
		going := true
		for s := range order {
			err := <-s.done
			if !going {
				f.free <- s
				continue
			}
			going = send(chunk{buf: s.plain, free: func([]byte) { f.free <- s }, err: err})
		}
		switch {
		case !going:
		case rest != nil:
			p.read(&lazyReader{open: func() (io.Reader, error) { return d.openZstd(rest) }}, tarBlocks, send)
		default:
			send(chunk{err: end})
		}
	})
	return out, nil
}
