package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/rootfs"
	"dsas/lab/figures"
)

// unpackRounds of each way of unpacking, in turn; medians count.
const unpackRounds = 5

// imagePeers measures what an image that was built is beside others: the same
// packages by mmdebstrap alone, the same tree packed and unpacked by other means.
func (b *bench) imagePeers(ctx context.Context, state string, first, last roleRun) error {
	work := filepath.Join(state, "work")
	// As a node mounts it: what a kernel gives to tmpfs, it gives to all.
	if err := rootfs.MountTmpfs(work, 0); err != nil {
		return err
	}
	defer unix.Unmount(work, unix.MNT_DETACH)
	blobs := filepath.Join(state, "images", "blobs", "sha256")
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if _, err := b.unpackOnce(ctx, unpackJob{Manifest: last.manifest, Blobs: blobs, Dest: tree}); err != nil {
		return err
	}
	if err := b.debstrap(ctx, tree, filepath.Join(work, "debstrap"), first); err != nil {
		return err
	}
	if err := b.pack(ctx, work, tree, last.manifest); err != nil {
		return err
	}
	return b.unpackBeside(ctx, work, unpackJob{Manifest: last.manifest, Blobs: blobs})
}

// debstrap times mmdebstrap with the packages that the tree has.
func (b *bench) debstrap(ctx context.Context, tree, into string, first roleRun) error {
	names, err := installed(filepath.Join(tree, "var/lib/dpkg/status"))
	if err != nil {
		return err
	}
	suite := figures.OSRelease(filepath.Join(tree, "usr/lib/os-release"))["VERSION_CODENAME"]
	if suite == "" {
		return fmt.Errorf("the tree's os-release has no VERSION_CODENAME: %w", dsas.ErrNotFound)
	}
	b.say("mmdebstrap with the same %d packages ...", len(names))
	args := []string{"--mode=root", "--variant=minbase", "--format=directory", "--quiet", "--dpkgopt=force-unsafe-io", "--include=" + strings.Join(names, ",")}
	for _, dir := range []string{"doc", "man", "info", "locale"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	took, _, err := b.timed(ctx, exec.CommandContext(ctx, "mmdebstrap", append(args, suite, into)...))
	defer os.RemoveAll(into)
	if err != nil {
		return err
	}
	b.report.add(figure("mmdebstrap alone", took.Seconds(), "s", "%d packages, into memory; no layers, no kernel", len(names)))
	b.report.add(figure("build from nothing, whole", first.took.Seconds(), "s", "package lists, kernel, initramfs, base, packages, modules; all fetched"))
	if first.role > 0 {
		b.report.add(figure("build from nothing, the role", first.role.Seconds()/took.Seconds(), "×", "of mmdebstrap alone: %.1f s; after kernel and initramfs", first.role.Seconds()).atMost(1.1))
	}
	return nil
}

// installed lists the packages that dpkg's status file says are installed.
func installed(status string) ([]string, error) {
	f, err := os.Open(status)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var names []string
	var name string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if v, ok := strings.CutPrefix(s.Text(), "Package: "); ok {
			name = v
		}
		if s.Text() == "Status: install ok installed" {
			names = append(names, name)
		}
	}
	return names, s.Err()
}

// pack packs the tree by the usual means, and compares the sizes.
func (b *bench) pack(ctx context.Context, work, tree string, m dsas.Manifest) error {
	var size, unpacked int64
	var layers []string
	for _, p := range m.Parts {
		size, unpacked = size+p.Size, unpacked+p.Unpacked
		layers = append(layers, fmt.Sprintf("%s %.1f", p.Title, float64(p.Size)/mib))
	}
	b.report.add(figure("image, as built", float64(size)/mib, "MiB", "%s; %d MiB in tmpfs", strings.Join(layers, ", "), unpacked/mib))
	for _, c := range []struct{ name, file, script string }{
		{"tar | zstd -3", "3.tar.zst", `tar -C "$1" -c . | zstd -q -3 -T0 -o "$2"`},
		{"tar | zstd -19", "19.tar.zst", `tar -C "$1" -c . | zstd -q -19 -T0 -o "$2"`},
		{"mksquashfs, zstd -3", "3.squashfs", `exec mksquashfs "$1" "$2" -quiet -no-progress -comp zstd -Xcompression-level 3`},
		{"mksquashfs, zstd -19", "19.squashfs", `exec mksquashfs "$1" "$2" -quiet -no-progress -comp zstd -Xcompression-level 19`},
	} {
		b.say("%s ...", c.name)
		file := filepath.Join(work, c.file)
		took, _, err := b.timed(ctx, exec.CommandContext(ctx, "sh", "-c", c.script, "sh", tree, file))
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		st, err := os.Stat(file)
		if err != nil {
			return err
		}
		b.report.add(figure(c.name, float64(st.Size())/mib, "MiB", "%.1f s, %.2f times the image's layers", took.Seconds(), float64(st.Size())/float64(size)))
	}
	return nil
}

// unpackBeside unpacks the image as a node does, and the packed trees by their
// own programs, in turn.
func (b *bench) unpackBeside(ctx context.Context, work string, job unpackJob) error {
	type way struct {
		name string
		run  func(into string) (unpacked, error)
		took []float64
		cpu  []float64
		peak int64
	}
	program := func(file, script string) func(string) (unpacked, error) {
		return func(into string) (unpacked, error) {
			cmd := exec.CommandContext(ctx, "sh", "-c", script, "sh", filepath.Join(work, file), into)
			took, use, err := b.timed(ctx, cmd)
			return unpacked{Seconds: took.Seconds(), Peak: use.Maxrss << 10, CPU: cpuSeconds(use)}, err
		}
	}
	ways := []*way{
		{name: "ours", run: func(into string) (unpacked, error) { job.Dest = into; return b.unpackOnce(ctx, job) }},
		{name: "zstd -d | tar x", run: program("3.tar.zst", `zstd -dc "$1" | tar x -C "$2"`)},
		{name: "unsquashfs", run: program("3.squashfs", `exec unsquashfs -q -n -f -d "$2" "$1"`)},
	}
	b.say("unpacking, %d rounds ...", unpackRounds)
	for range unpackRounds {
		for _, w := range ways {
			into, err := os.MkdirTemp(work, "into-")
			if err != nil {
				return err
			}
			got, err := w.run(into)
			if err := errors.Join(err, os.RemoveAll(into)); err != nil {
				return fmt.Errorf("unpack, %s: %w", w.name, err)
			}
			w.took, w.cpu, w.peak = append(w.took, got.Seconds), append(w.cpu, got.CPU), max(w.peak, got.Peak)
		}
	}
	ours, zstd := ways[0], ways[1]
	for _, w := range ways {
		note := "%.2f s of processor time, largest process %d MiB; medians of %d, in turn"
		b.report.add(figure("unpack, "+w.name, median(w.took), "s", note, median(w.cpu), w.peak/mib, unpackRounds))
	}
	b.report.add(
		figure("unpack, this image", median(ours.took)/median(zstd.took), "×", "of zstd -d | tar x; %.2f times its processor time, %.2f times unsquashfs", median(ours.cpu)/median(zstd.cpu), median(ours.took)/median(ways[2].took)).atMost(0.6),
		figure("unpack, memory beside the tree", float64(ours.peak)/mib, "MiB", "the whole program's, by VmHWM").atMost(32),
	)
	return nil
}

// timed runs a program, and tells what it and its children used. Its Maxrss
// is not less than our own at its start (getrusage(2) survives exec).
func (b *bench) timed(ctx context.Context, cmd *exec.Cmd) (time.Duration, *syscall.Rusage, error) {
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	own(cmd)
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, &syscall.Rusage{}, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, lastLines(said.Bytes(), 3))
	}
	return took, cmd.ProcessState.SysUsage().(*syscall.Rusage), nil
}

func cpuSeconds(r *syscall.Rusage) float64 {
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

// unpackJob is what a child of ours is to unpack, from files.
type unpackJob struct {
	Manifest    dsas.Manifest
	Blobs, Dest string
}

// unpacked is what it says of it.
type unpacked struct {
	Seconds float64 // of rootfs.Fetch
	CPU     float64 // processor seconds of the whole program
	Peak    int64   // VmHWM, in bytes
}

// unpackOnce unpacks in a process of its own, whose memory can be told.
func (b *bench) unpackOnce(ctx context.Context, job unpackJob) (unpacked, error) {
	self, err := os.Executable()
	if err != nil {
		return unpacked{}, err
	}
	in, err := json.Marshal(job)
	if err != nil {
		return unpacked{}, err
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, self, unpackChildArg)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errOut
	own(cmd)
	if err := cmd.Run(); err != nil {
		return unpacked{}, fmt.Errorf("unpack: %w: %s", err, lastLines(errOut.Bytes(), 3))
	}
	var got unpacked
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		return unpacked{}, fmt.Errorf("unpack: its answer: %w", err)
	}
	return got, nil
}

// unpackChildArg makes this program the child of unpackOnce.
const unpackChildArg = "unpack-child"

func unpackChild(ctx context.Context, in io.Reader, out io.Writer) error {
	var job unpackJob
	if err := json.NewDecoder(in).Decode(&job); err != nil {
		return err
	}
	stats, err := rootfs.Fetch(ctx, rootfs.Options{
		Client: &http.Client{Transport: fromFiles(job.Blobs)}, BaseURL: "http://files",
		Manifest: job.Manifest, Dest: job.Dest, SkipDiffID: true, // as a node does
	})
	if err != nil {
		return err
	}
	got := unpacked{Seconds: stats.Duration.Seconds()}
	var kib int64
	if _, err := fmt.Sscanf(figures.ProcField("/proc/self/status", "VmHWM"), "%d kB", &kib); err != nil {
		return fmt.Errorf("VmHWM: %w", err)
	}
	got.Peak = kib << 10
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return err
	}
	got.CPU = cpuSeconds(&use)
	return json.NewEncoder(out).Encode(got)
}

// fromFiles answers requests for blobs from a folder: no network is measured.
type fromFiles string

func (f fromFiles) RoundTrip(r *http.Request) (*http.Response, error) {
	_, hex, _ := strings.Cut(r.URL.Path, "/blobs/sha256:")
	file, err := os.Open(filepath.Join(string(f), filepath.Base(hex)))
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	answer := &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: file, ContentLength: st.Size(), Request: r, Header: http.Header{}}
	var from, to int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 {
		if _, err := file.Seek(from, io.SeekStart); err != nil {
			file.Close()
			return nil, err
		}
		answer.StatusCode, answer.Status, answer.ContentLength = http.StatusPartialContent, "206 Partial Content", to+1-from
		answer.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, st.Size()))
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(file, to+1-from), file}
	}
	return answer, nil
}
