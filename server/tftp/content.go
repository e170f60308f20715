package tftp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"

	"dsas"
)

// Request is what Config.Open is asked for.
type Request struct {
	// MAC is the one in "nbp/MAC/FILE"; zero where the name has none.
	MAC dsas.MAC
	// File is the name without "nbp/MAC/" and without a leading slash. It has
	// been checked: one or more parts between single slashes, none of them "."
	// or "..", printable, at most 255 bytes.
	File string
	From netip.Addr // who asks; unproven
}

// Content is one file that is served. ReadAt has to be quick (memory, or a
// local disk): all transfers wait for it. File and Bytes make the two usual
// kinds, which cost nothing per block.
type Content interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// File is the content of an open file; Close closes it. Transfers of the same
// file share one mapping of it. It must not be written to while it is served:
// put another in its place by rename.
func File(f *os.File) (Content, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", f.Name(), dsas.ErrInvalid)
	}
	return &fileContent{File: f, info: fi}, nil
}

type fileContent struct {
	*os.File
	info os.FileInfo
}

// Size implements Content.
func (c *fileContent) Size() int64 { return c.info.Size() }

// Bytes is content in memory. b must not change any more.
func Bytes(b []byte) Content { return &byteContent{bytes.NewReader(b), b} }

type byteContent struct {
	*bytes.Reader
	all []byte
}

// Close implements Content.
func (*byteContent) Close() error { return nil }

// Opener finds a file that is neither a loader of Dir nor PXELINUX's
// configuration; an error that is dsas.ErrNotFound where there is none.
type Opener func(ctx context.Context, r Request) (Content, error)
