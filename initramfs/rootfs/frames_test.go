package rootfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"dsas/initramfs/rootfs"
	"dsas/internal/zframes"
)

// TestFrames: a part gives the same tree however it was compressed, in small frames
// or not or first so and then so, and however many of them are decompressed at once.
func TestFrames(t *testing.T) {
	var ents []ent
	for i := range 40 {
		ents = append(ents, ent{name: fmt.Sprintf("f%02d", i), body: strings.Repeat(noise(1000+i), 300)})
	}
	tarred := tarOf(t, ents...)
	if len(tarred) < 2*zframes.Size {
		t.Fatalf("%d bytes are too few frames", len(tarred))
	}
	half := len(tarred)/2 + 77
	packings := map[string][]byte{
		"frames":              compress(t, tarred),
		"a stream":            stream(t, tarred),
		"frames, a stream":    append(compress(t, tarred[:half]), stream(t, tarred[half:])...),
		"a stream, frames":    append(stream(t, tarred[:half]), compress(t, tarred[half:])...),
		"frames, one to skip": append(append(compress(t, tarred[:half]), skippable(100)...), compress(t, tarred[half:])...),
	}
	for _, procs := range []int{1, 2, 8} {
		for name, blob := range packings {
			t.Run(fmt.Sprintf("%s, %d", name, procs), func(t *testing.T) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				s, dir := newShop(t), dest(t)
				// The decoders serve one part after the other.
				first := s.add(t, tarOf(t, ent{name: "first", body: noise(3 << 20)}))
				last := s.add(t, tarOf(t, ent{name: "last", body: "x"}))
				if _, err := rootfs.Fetch(ctxFor(t), s.options(dir, first, s.addPacked(blob, tarred), last)); err != nil {
					t.Fatal(err)
				}
				for _, e := range ents {
					if read(t, dir, e.name) != e.body {
						t.Errorf("%s is not what it was", e.name)
					}
				}
				if read(t, dir, "first") != noise(3<<20) || read(t, dir, "last") != "x" {
					t.Error("the parts around it are not what they were")
				}
			})
		}
	}
}

// TestFramesThatLie: a frame that holds more or less than it says, or cannot be
// read, is a part that was made wrong, and all that came before is taken back.
func TestFramesThatLie(t *testing.T) {
	good := compress(t, tarOf(t, ent{name: "f", body: noise(3 << 20)}))
	frame := func(says uint32, block ...byte) []byte {
		b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0} // 4 bytes of size, one segment, no checksum
		b = binary.LittleEndian.AppendUint32(b, says)
		v := uint32(len(block))<<3 | 1 // raw, the last
		return append(append(b, byte(v), byte(v>>8), byte(v>>16)), block...)
	}
	for name, blob := range map[string][]byte{
		"more than it says":  append(bytes.Clone(good), frame(10, make([]byte, 20)...)...),
		"less than it says":  append(bytes.Clone(good), frame(30, make([]byte, 20)...)...),
		"no block of zstd's": append(bytes.Clone(good), append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 100, 0, 0, 0, 10<<3 | 5, 0, 0}, "0123456789"...)...),
		"cut":                append(bytes.Clone(good), frame(20, make([]byte, 20)...)[:15]...),
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newShop(t), dest(t)
			part := s.addPacked(blob, nil)
			part.DiffID = ""
			part.Unpacked = 4 << 20
			_, err := rootfs.Fetch(ctxFor(t), s.options(dir, part))
			var content *rootfs.ContentError
			if !errors.As(err, &content) {
				t.Fatalf("Fetch() = %v; want a ContentError", err)
			}
			checkEmpty(t, dir)
		})
	}
}
