package rootfs_test

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/rootfs"
	"dsas/internal/zframes"
)

const (
	benchFiles = 10_000
	benchBytes = 660 << 20
	// benchRounds of each way, in turn; the medians are compared.
	benchRounds = 5
)

// BenchmarkUnpack compares Fetch with `zstd -dc | tar x`: the same ~660 MB
// tree of 10,000 files, both from a file in memory into a node's tmpfs, in turn, as
// image builds pack it and as zstd -3 does. Fetch
// checks the digests on the way (with and without DiffID), the other nothing. DSAS_BENCH_TREE names a
// folder to use in place of the generated tree; DSAS_BENCH_JSON a file to which
// a line of JSON is appended.
func BenchmarkUnpack(b *testing.B) {
	for _, tool := range []string{"zstd", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("DSAS_CI") != "" {
				b.Fatal(err)
			}
			b.Skip(err)
		}
	}
	work := dest(b)
	if os.Geteuid() == 0 { // as a node mounts it, for both
		if err := rootfs.MountTmpfs(work, 0); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { unix.Unmount(work, unix.MNT_DETACH) })
	}
	frames, stream, files := benchParts(b, work)

	fetch := func(p packedPart, skip bool) func(string) error {
		return func(into string) error {
			_, err := rootfs.Fetch(context.Background(), rootfs.Options{
				Client:  &http.Client{Transport: fromFile(p.file)},
				BaseURL: "http://file", Dest: into, SkipDiffID: skip,
				Manifest: dsas.Manifest{Role: "bench", Parts: []dsas.Part{p.Part}},
			})
			return err
		}
	}
	var theirs, ours, skipping, streaming []float64
	for range benchRounds {
		theirs = append(theirs, timed(b, work, func(into string) error {
			return exec.Command("/bin/sh", "-c", `zstd -dc "$0" | tar x -C "$1"`, stream.file, into).Run()
		}))
		ours = append(ours, timed(b, work, fetch(frames, false)))
		skipping = append(skipping, timed(b, work, fetch(frames, true)))
		streaming = append(streaming, timed(b, work, fetch(stream, true)))
	}
	part, their := frames.Part, median(theirs)
	our, skip, one := median(ours), median(skipping), median(streaming)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(our, "s/fetch")
	b.ReportMetric(skip, "s/skip-diffid")
	b.ReportMetric(their, "s/zstd-tar")
	b.ReportMetric(our/their, "ratio")
	b.ReportMetric(skip/their, "ratio-skip-diffid")
	b.ReportMetric(one/their, "ratio-stream")
	b.Logf("unpack %d MiB in %d files: zstd -dc | tar x %.2f s; ours %.2f s: %.2f times it; without DiffID %.2f s: %.2f times it (aim 0.60); that of zstd's own stream %.2f s: %.2f times it; rounds %.2f %.2f %.2f %.2f; frames take %.1f %% more than zstd's stream",
		part.Unpacked>>20, files, their, our, our/their, skip, skip/their, one, one/their, theirs, ours, skipping, streaming, 100*float64(part.Size-stream.Size)/float64(stream.Size))
	if name := os.Getenv("DSAS_BENCH_JSON"); name != "" {
		line, _ := json.Marshal(map[string]any{"name": "unpack", "unit": "s", "value": our, "zstdTar": their, "ratio": our / their, "skipDiffID": skip, "ratioSkipDiffID": skip / their, "ratioStream": one / their,
			"aimRatio": 0.6, "bytes": part.Unpacked, "compressed": part.Size, "files": files})
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err == nil {
			_, err = f.Write(append(line, '\n'))
			f.Close()
		}
		if err != nil {
			b.Errorf("write figures: %v", err)
		}
	}
}

func timed(b *testing.B, work string, do func(into string) error) float64 {
	into, err := os.MkdirTemp(work, "tree-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(into)
	begin := time.Now()
	if err := do(into); err != nil {
		b.Fatal(err)
	}
	return time.Since(begin).Seconds()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// fromFile answers every request with a file: the network is not measured.
type fromFile string

func (f fromFile) RoundTrip(r *http.Request) (*http.Response, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: file, ContentLength: st.Size(), Request: r, Header: http.Header{}}, nil
}

// packedPart is a part, and the file with its bytes.
type packedPart struct {
	dsas.Part
	file string
}

// benchParts packs the tree as image builds do, in frames, and with zstd -3 as one
// stream.
func benchParts(b *testing.B, work string) (frames, stream packedPart, files int) {
	frames.file, stream.file = filepath.Join(work, "frames.tar.zst"), filepath.Join(work, "stream.tar.zst")
	cmd := exec.Command("zstd", "-q", "-3", "-T2", "-o", stream.file)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	out, err := os.Create(frames.file)
	if err != nil {
		b.Fatal(err)
	}
	zw, err := zframes.NewWriter(out)
	if err != nil {
		b.Fatal(err)
	}
	inside := sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(in, zw, inside), 1<<20)
	w := tar.NewWriter(buffered)
	var size int64
	if tree := os.Getenv("DSAS_BENCH_TREE"); tree != "" {
		files, size, err = tarTree(w, tree)
	} else {
		files, size, err = tarGenerated(w)
	}
	for _, e := range []error{err, w.Close(), buffered.Flush(), zw.Close(), out.Close(), in.Close(), cmd.Wait()} {
		if e != nil {
			b.Fatal(e)
		}
	}
	for _, p := range []*packedPart{&frames, &stream} {
		f, err := os.Open(p.file)
		if err != nil {
			b.Fatal(err)
		}
		travelled := sha256.New()
		n, err := io.Copy(travelled, f)
		f.Close()
		if err != nil {
			b.Fatal(err)
		}
		p.Part = dsas.Part{Digest: sum(travelled), DiffID: sum(inside), Size: n, Unpacked: size, MediaType: dsas.MediaTarZstd, Title: "bench"}
	}
	return frames, stream, files
}

func sum(h hash.Hash) dsas.Digest { return dsas.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))) }

// tarGenerated writes a tree that is to zstd about what a Debian root is: a
// third of its size, few large files and many small ones.
func tarGenerated(w *tar.Writer) (files int, size int64, err error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	src := rand.NewChaCha8([32]byte{7})
	words := make([][]byte, 20_000)
	for i := range words {
		words[i] = make([]byte, 6+rnd.IntN(40))
		src.Read(words[i])
	}
	zipf := rand.NewZipf(rnd, 1.05, 4, uint64(len(words)-1))
	text := make([]byte, 0, 16<<20)
	for len(text) < 12<<20 {
		text = append(text, words[zipf.Uint64()]...)
		if rnd.IntN(3) == 0 { // what machine code has between its patterns
			var odd [8]byte
			src.Read(odd[:])
			text = append(text, odd[:]...)
		}
	}
	const mean = benchBytes / benchFiles
	for files < benchFiles {
		if files%40 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/d%03d/", files/40), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return files, size, err
			}
		}
		n := int64(mean / 8)
		switch { // 2 % hold most of the bytes
		case files%50 == 0:
			n = mean * 35
		case files%3 == 0:
			n = mean / 2
		}
		n += rnd.Int64N(n)
		n = n * 70 / 100
		h := &tar.Header{Name: fmt.Sprintf("usr/lib/d%03d/f%05d", files/40, files), Typeflag: tar.TypeReg, Mode: 0o644, Size: n, ModTime: time.Unix(1_700_000_000, 0)}
		if err := w.WriteHeader(h); err != nil {
			return files, size, err
		}
		for left := n; left > 0; {
			at := rnd.IntN(len(text) - 64<<10)
			m, err := w.Write(text[at : at+int(min(left, 8<<10+rnd.Int64N(32<<10)))])
			if err != nil {
				return files, size, err
			}
			left -= int64(m)
		}
		files++
		size += (n + 4095) / 4096 * 4096
	}
	return files, size, nil
}

// tarTree writes a real one.
func tarTree(w *tar.Writer, top string) (files int, size int64, err error) {
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil || h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			return err
		}
		h.Name = "." + strings.TrimPrefix(path, strings.TrimSuffix(top, "/"))
		if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(w, f)
		files, size = files+1, size+(n+4095)/4096*4096
		return err
	})
	return files, size, err
}
