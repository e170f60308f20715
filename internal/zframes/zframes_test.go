package zframes_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"dsas/internal/zframes"
)

// content is n bytes of which half can be compressed.
func content(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := 0; i < n; i += 8 {
		if r.IntN(2) == 0 && i+8 <= n {
			binary.LittleEndian.PutUint64(b[i:], r.Uint64())
		}
	}
	return b
}

func pack(t testing.TB, plain []byte, step int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zframes.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	for rest := plain; len(rest) > 0; {
		n := min(step, len(rest))
		if got, err := w.Write(rest[:n]); err != nil || got != n {
			t.Fatalf("write: %d of %d: %v", got, n, err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestFrames: what was written is found again frame by frame, the bytes are the
// same however they were written and by however many at once, and the zstd
// program reads them as one file.
func TestFrames(t *testing.T) {
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, n := range []int{0, 1, 255, 256, 300, 65_535, 70_000, 128 << 10, zframes.Size - 1, zframes.Size, zframes.Size + 1, 3*zframes.Size + 12_345} {
		plain := content(n)
		packed := pack(t, plain, 100_000)
		old := runtime.GOMAXPROCS(1)
		if !bytes.Equal(pack(t, plain, n+1), packed) {
			t.Errorf("%d bytes: other ones when written at once, one frame after the other", n)
		}
		runtime.GOMAXPROCS(old)

		var got, frame []byte
		frames := 0
		for r := iotest.HalfReader(bytes.NewReader(packed)); ; frames++ {
			var size int
			frame, size, err = zframes.Next(r, frame[:0])
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%d bytes, frame %d: %v", n, frames, err)
			}
			at := len(got)
			if got, err = z.DecodeAll(frame, got); err != nil || len(got)-at != size {
				t.Fatalf("%d bytes, frame %d: %d bytes of content, %d announced: %v", n, frames, len(got)-at, size, err)
			}
		}
		if want := max(1, (n+zframes.Size-1)/zframes.Size); frames != want || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %d frames, want %d; content is right: %t", n, frames, want, bytes.Equal(got, plain))
		}
		cmd := exec.Command("zstd", "-dc")
		cmd.Stdin = bytes.NewReader(packed)
		if out, err := cmd.Output(); errors.Is(err, exec.ErrNotFound) && os.Getenv("DSAS_CI") == "" {
			t.Log("no zstd program here")
		} else if err != nil || !bytes.Equal(out, plain) {
			t.Errorf("%d bytes: zstd -d: %v, %d bytes", n, err, len(out))
		}
	}
}

// TestOther: what is no small frame is told as such, with all that was read.
func TestOther(t *testing.T) {
	stream := func(opts ...zstd.EOption) []byte {
		var out bytes.Buffer
		w, err := zstd.NewWriter(&out, opts...)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(content(3 * zframes.Size))
		w.Close()
		return out.Bytes()
	}
	large, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := pack(t, content(100_000), 100_000)
	endless := append(bytes.Clone(whole[:9]), bytes.Repeat([]byte{0x04, 0, 0}, 2*zframes.Size)...)
	for name, packed := range map[string][]byte{
		"a stream that does not say its size": stream(),
		"a large frame":                       large.EncodeAll(content(zframes.Size+1), nil),
		"cut in its header":                   whole[:5],
		"cut in its magic":                    whole[:2],
		"cut in a block":                      whole[:len(whole)/2],
		"cut in its checksum":                 whole[:len(whole)-1],
		"no zstd":                             []byte("not zstd at all"),
		"to be skipped":                       {0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7},
		"a reserved bit":                      append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x28}, whole[5:]...),
		"a reserved block":                    append(bytes.Clone(whole[:9]), 7, 0, 0),
		"blocks without an end":               endless,
	} {
		r := bytes.NewReader(packed)
		got, _, err := zframes.Next(r, nil)
		if !errors.Is(err, zframes.ErrOther) {
			t.Errorf("%s: %v, want ErrOther", name, err)
		}
		rest, _ := io.ReadAll(r)
		if !bytes.Equal(append(got, rest...), packed) {
			t.Errorf("%s: what was read and what is left are not what there was", name)
		}
	}
	broken := errors.New("broken")
	if _, _, err := zframes.Next(io.MultiReader(bytes.NewReader(whole[:1000]), iotest.ErrReader(broken)), nil); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// TestWriteFails: an error of the writer below is told, and nothing hangs.
func TestWriteFails(t *testing.T) {
	w, err := zframes.NewWriter(&failing{after: 1000})
	if err != nil {
		t.Fatal(err)
	}
	plain := content(zframes.Size)
	for range 64 {
		if _, err = w.Write(plain); err != nil {
			break
		}
	}
	if cerr := w.Close(); !errors.Is(cerr, io.ErrShortWrite) {
		t.Errorf("close: %v", cerr)
	}
	if err != nil && !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("write: %v", err)
	}
}

// FuzzNext: whatever comes, Next gives it back whole and in bounded memory; where
// it finds a frame, a decoder that reads it finds the size that was told.
func FuzzNext(f *testing.F) {
	f.Add(pack(f, content(1000), 1000))
	f.Add(pack(f, content(300_000), 300_000))
	f.Add(pack(f, nil, 1))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x01, 0x00, 0x00})
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.IgnoreChecksum(true))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		frame, size, err := zframes.Next(r, nil)
		if size > zframes.Size || err == nil && size < 0 {
			t.Fatalf("%d bytes", size)
		}
		rest, _ := io.ReadAll(r)
		if !bytes.Equal(append(bytes.Clone(frame), rest...), in) {
			t.Fatal("not given back whole")
		}
		if err != nil {
			return
		}
		if out, err := z.DecodeAll(frame, nil); err == nil && len(out) != size {
			t.Fatalf("%d bytes, %d were told", len(out), size)
		}
	})
}
