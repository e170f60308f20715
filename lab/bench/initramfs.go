package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
)

// initramfs is what an initramfs holds, in bytes before compression.
type initramfs struct {
	modules                      map[string]bool // by file name
	total, programs, moduleBytes int64
}

// listInitramfs reads an initramfs as the kernel does: compressed archives one
// after the other, with zeros between them (kernel
// Documentation/driver-api/early-userspace/buffer-format.rst).
func listInitramfs(r io.Reader) (initramfs, error) {
	in := initramfs{modules: map[string]bool{}}
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return in, fmt.Errorf("read initramfs: %w", err)
	}
	defer z.Close()
	plain := bufio.NewReaderSize(z, 1<<20)
	for {
		b, err := plain.ReadByte()
		if errors.Is(err, io.EOF) {
			return in, nil
		}
		if err != nil {
			return in, fmt.Errorf("read initramfs: %w", err)
		}
		if b == 0 {
			continue
		}
		if err := plain.UnreadByte(); err != nil {
			return in, fmt.Errorf("read initramfs: %w", err)
		}
		if err := in.archive(cpio.NewReader(plain)); err != nil {
			return in, fmt.Errorf("read initramfs: %w", err)
		}
	}
}

func (in *initramfs) archive(r *cpio.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		in.total += h.Size
		switch {
		case strings.HasSuffix(h.Name, ".ko"):
			in.modules[path.Base(h.Name)] = true
			in.moduleBytes += h.Size
		case h.Mode.IsRegular() && h.Mode&0o111 != 0:
			in.programs += h.Size
		}
	}
}
