// Package zframes writes zstd as a row of small frames, and finds the frames in a
// stream: so that several can be compressed, and decompressed, at once. For every
// program that reads zstd the result is one file (RFC 8878 section 3.1: what
// frames in a row hold is one content).
package zframes

import (
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Size is how much content a frame holds, in bytes; the last one has less. Larger
// frames are packed a little tighter, and want more memory of who reads
// several (docs/performance.md has figures).
const Size = 2 << 20

// Writer compresses what is written to it. The bytes do not depend on how many
// frames are compressed at once.
type Writer struct {
	enc    *zstd.Encoder
	plain  []byte // the frame that is being filled
	begun  bool   // there is a frame
	closed bool
	spare  chan []byte // buffers of Size bytes
	queue  chan frame  // under way, in their order
	done   chan struct{}

	mu  sync.Mutex
	err error // of writing
}

// frame is one under way.
type frame struct {
	plain  []byte
	packed chan []byte
}

// NewWriter compresses to w, at about the level of zstd -7. The Writer must be closed.
func NewWriter(w io.Writer) (*Writer, error) {
	n := runtime.GOMAXPROCS(0)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(n), zstd.WithWindowSize(Size), zstd.WithZeroFrames(true), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, err
	}
	z := &Writer{enc: enc, spare: make(chan []byte, n+2), queue: make(chan frame, n), done: make(chan struct{})}
	go z.write(w)
	return z, nil
}

// write writes the frames as they are ready.
func (z *Writer) write(w io.Writer) {
	defer close(z.done)
	for f := range z.queue {
		packed := <-f.packed
		if z.failed() == nil {
			if _, err := w.Write(packed); err != nil {
				z.mu.Lock()
				z.err = err
				z.mu.Unlock()
			}
		}
		select {
		case z.spare <- f.plain[:0]:
		default:
		}
	}
}

func (z *Writer) failed() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.err
}

// Write implements io.Writer. An error may be that of a frame before.
func (z *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if z.plain == nil {
			select {
			case z.plain = <-z.spare:
			default:
				z.plain = make([]byte, 0, Size)
			}
		}
		m := min(len(p), Size-len(z.plain))
		z.plain = append(z.plain, p[:m]...)
		p, n = p[m:], n+m
		if len(z.plain) == Size {
			if err := z.failed(); err != nil {
				return n, err
			}
			z.compress()
		}
	}
	return n, nil
}

// compress hands on the frame that was filled; it waits while enough are under way.
func (z *Writer) compress() {
	f := frame{z.plain, make(chan []byte, 1)}
	z.plain, z.begun = nil, true
	z.queue <- f
	go func() { f.packed <- z.enc.EncodeAll(f.plain, nil) }()
}

// Close ends the last frame; the writer below stays open. Nothing written at all is
// one empty frame. Closing again does nothing.
func (z *Writer) Close() error {
	if z.closed {
		return z.failed()
	}
	z.closed = true
	if len(z.plain) > 0 || !z.begun {
		z.compress()
	}
	close(z.queue)
	<-z.done
	z.enc.Close()
	return z.failed()
}

// ErrOther: what follows is no frame as Writer writes them: it is larger, does not
// say its size, is to be skipped, damaged, or at its end too early. An ordinary
// decoder can tell, from what was read and the rest.
var ErrOther = errors.New("not a small frame")

// MaxPacked is more than a frame can take, in bytes: what cannot be compressed is
// stored, with a head of three bytes for each 128 KiB.
const MaxPacked = Size + Size/1024 + 64

const magic = 0xFD2FB528 // RFC 8878 section 3.1.1

// Next appends the next frame of r to b, and gives how much it holds (bytes). It is
// io.EOF when there is no more, and ErrOther, or an error of r's, with what was read
// of it appended.
func Next(r io.Reader, b []byte) (packed []byte, size int, err error) {
	begin := len(b)
	more := func(n int) bool {
		if err != nil {
			return false
		}
		if len(b)-begin+n > MaxPacked {
			err = ErrOther
			return false
		}
		at := len(b)
		if cap(b)-at < n {
			b = append(make([]byte, 0, max(2*cap(b), at+n)), b...)
		}
		var got int
		got, err = io.ReadFull(r, b[at:at+n])
		b = b[:at+got]
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) && len(b) > begin {
			err = ErrOther
		}
		return err == nil
	}
	if !more(5) {
		return b, 0, err
	}
	head, ok := headOf(b[begin:])
	if !ok {
		return b, 0, ErrOther
	}
	if !more(head.rest) {
		return b, 0, err
	}
	content := head.content(b[len(b)-head.sizeBytes:])
	if content > Size {
		return b, 0, ErrOther
	}
	for last := false; !last; { // RFC 8878 section 3.1.1.2
		if !more(3) {
			return b, 0, err
		}
		h := b[len(b)-3:]
		v := uint32(h[0]) | uint32(h[1])<<8 | uint32(h[2])<<16
		last = v&1 == 1
		n := int(v >> 3)
		switch v >> 1 & 3 {
		case 1: // one byte, so many times
			n = 1
		case 3: // reserved
			return b, 0, ErrOther
		}
		if n > 0 && !more(n) {
			return b, 0, err
		}
	}
	if head.checksum && !more(4) {
		return b, 0, err
	}
	return b, int(content), nil
}

// header is what the first five bytes of a frame say (RFC 8878 section 3.1.1.1).
type header struct {
	rest      int // bytes of the header that follow
	sizeBytes int // the last of them: the content's size
	checksum  bool
}

func headOf(b []byte) (h header, ok bool) {
	d := b[4]
	if binary.LittleEndian.Uint32(b) != magic || d&0x08 != 0 || d&0x03 != 0 { // reserved; a dictionary
		return h, false
	}
	single := d&0x20 != 0
	switch d >> 6 {
	case 0:
		if !single {
			return h, false // it does not say its size
		}
		h.sizeBytes = 1
	case 1:
		h.sizeBytes = 2
	case 2:
		h.sizeBytes = 4
	case 3:
		h.sizeBytes = 8
	}
	h.rest = h.sizeBytes
	if !single {
		h.rest++ // the window
	}
	h.checksum = d&0x04 != 0
	return h, true
}

func (h header) content(b []byte) uint64 {
	switch h.sizeBytes {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(b)) + 256
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return binary.LittleEndian.Uint64(b)
}
