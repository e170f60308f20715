// Package rootfs makes a role's root file system out of its image: fetch,
// verify, unpack into tmpfs at once, and switch to it.
package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"dsas"
)

// Options say what Fetch is to do.
type Options struct {
	// Client sends the requests. Nil: one that dials for 5 s at most, uses no
	// proxy and has no limit on the whole transfer. A Client with a Timeout
	// would cut every long transfer (and Fetch would resume it).
	Client  *http.Client
	BaseURL string // of the boot listener, "http://10.77.0.1:8080"
	// Registry is asked for a part before BaseURL is: the base URL of an OCI
	// registry, "http://10.0.0.9:5000". It need not be trusted nor be there. "": none.
	Registry string
	Manifest dsas.Manifest
	// Dest is the empty folder to unpack into, normally a tmpfs of its own.
	// On an error everything in it is removed.
	Dest string
	// Progress hears of every mebibyte of a part (counted from 0) and of its
	// end: bytes so far, compressed, that went on to be unpacked. It is called
	// from another goroutine, one call at a time and in the order of parts; nil:
	// nobody.
	Progress func(part int, bytes int64)
	Log      *slog.Logger
	// Stall is how long a connection may give no byte before it is given up
	// and another is made. Default 20 s.
	Stall time.Duration
	// SkipDiffID leaves the digest of the tar inside unchecked. The digest of the
	// bytes that travelled fixes the tar as well, and is always checked: DiffID
	// only finds an image that was published wrong. Hashing 660 MB takes 0.36 s
	// of processor time, a third of all that Fetch needs.
	SkipDiffID bool
	// Sleep waits between two tries; a test replaces it. Nil: real time.
	Sleep func(ctx context.Context, d time.Duration) error
}

// Stats are the figures of one Fetch.
type Stats struct {
	Bytes     int64 // compressed, over all parts
	Unpacked  int64 // of file content, in whole pages
	Entries   int   // tar entries applied
	Resumes   int   // interrupted transfers taken up again
	KeptLinks int   // symbolic links to a folder that a layer's folder entry left alone
	NoXattrs  int   // extended attributes that the file system does not support
	// FromRegistry are the bytes of content that Options.Registry gave.
	FromRegistry int64
	Duration     time.Duration // of the whole Fetch
}

// String is one line for people.
func (s Stats) String() string {
	line := fmt.Sprintf("%d MiB in %.1f s, %d entries, %d MiB unpacked", s.Bytes>>20, s.Duration.Seconds(), s.Entries, s.Unpacked>>20)
	if s.Resumes > 0 {
		line += fmt.Sprintf(", resumed %d times", s.Resumes)
	}
	if s.FromRegistry > 0 {
		line += fmt.Sprintf(", %d MiB of it from the registry", s.FromRegistry>>20)
	}
	return line
}

// DigestError: a part's bytes, or the tar inside, are not what the manifest
// says. The part was refused and the tree thrown away.
type DigestError struct {
	Part      int // counted from 0
	Title     string
	Want, Got dsas.Digest
	Tar       bool // the digest of the tar inside (DiffID), not of the bytes that travelled
}

func (e *DigestError) Error() string {
	what := "bytes"
	if e.Tar {
		what = "tar"
	}
	return fmt.Sprintf("part %d (%s) refused: digest of its %s is %s, the manifest says %s: publish the image again",
		e.Part+1, e.Title, what, e.Got, e.Want)
}

// SizeError: the server has the part with another size than the manifest says.
type SizeError struct {
	Part      int // counted from 0
	Title     string
	Want, Got int64
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("part %d (%s) refused: the server has %d bytes of it, the manifest says %d: publish the image again",
		e.Part+1, e.Title, e.Got, e.Want)
}

// ContentError: a part arrived as the manifest says, and cannot be unpacked:
// it was made wrong, or means harm.
type ContentError struct {
	Part  int // counted from 0
	Title string
	Err   error
}

func (e *ContentError) Error() string {
	return fmt.Sprintf("part %d (%s) refused: its digest is right and its content is not: %v: build the image again",
		e.Part+1, e.Title, e.Err)
}

func (e *ContentError) Unwrap() error { return e.Err }

// BadPart says whether err means that a part of the image is damaged (other
// than: could not be fetched, or did not fit).
func BadPart(err error) bool {
	var d *DigestError
	var s *SizeError
	var c *ContentError
	return errors.As(err, &d) || errors.As(err, &s) || errors.As(err, &c)
}

func defaultClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:        (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
	}}
}

// Fetch makes Dest the manifest's tree: each part in its order is fetched,
// hashed, decompressed and unpacked while it arrives, and the beginnings of those
// that follow are fetched meanwhile. An interrupted transfer
// is taken up where it broke off, for ever, until ctx ends. When Fetch returns
// an error nothing of the tree is left. Beside the tree it takes less than
// Overhead of memory, whatever the image.
func Fetch(ctx context.Context, o Options) (Stats, error) {
	if o.Registry != "" {
		return fetchVia(ctx, o)
	}
	begin := time.Now()
	if o.Client == nil {
		o.Client = defaultClient()
		defer o.Client.CloseIdleConnections()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Stall <= 0 {
		o.Stall = 20 * time.Second
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	if err := checkManifest(o.Manifest); err != nil {
		return Stats{}, fmt.Errorf("fetch image: %w", err)
	}
	u, err := newUnpacker(o.Dest, o.Log)
	if err != nil {
		return Stats{}, fmt.Errorf("fetch image: %w", err)
	}
	defer u.close()

	f := &fetcher{o: o, u: u}
	f.ahead = newAhead(ctx, o, &f.pool)
	defer f.decoders.close()
	defer f.ahead.stop()
	for i, part := range o.Manifest.Parts {
		if err = f.part(ctx, i, part); err != nil {
			err = fmt.Errorf("fetch image of role %s: %w", o.Manifest.Role, err)
			break
		}
	}
	if err == nil {
		err = u.finish()
	}
	if err != nil {
		if e := u.discard(); e != nil {
			err = fmt.Errorf("%w; and its remains in %s could not be removed: %w", err, o.Dest, e)
		}
		return Stats{}, err
	}
	f.stats.Unpacked, f.stats.Entries = u.total, u.entries
	f.stats.KeptLinks, f.stats.NoXattrs = u.keptLinks, u.noXattrs
	f.stats.Duration = time.Since(begin)
	return f.stats, nil
}

func checkManifest(m dsas.Manifest) error {
	if len(m.Parts) == 0 {
		return fmt.Errorf("manifest of role %q has no parts: build its image: %w", m.Role, dsas.ErrInvalid)
	}
	for i, p := range m.Parts {
		if _, err := dsas.ParseDigest(string(p.Digest)); err != nil {
			return fmt.Errorf("manifest of role %q, part %d: %w", m.Role, i+1, err)
		}
		if p.DiffID != "" {
			if _, err := dsas.ParseDigest(string(p.DiffID)); err != nil {
				return fmt.Errorf("manifest of role %q, part %d: diffId: %w", m.Role, i+1, err)
			}
		}
		if p.Size <= 0 {
			return fmt.Errorf("manifest of role %q, part %d: size %d: build the image again: %w", m.Role, i+1, p.Size, dsas.ErrInvalid)
		}
	}
	return nil
}

type fetcher struct {
	o     Options
	u     *unpacker
	ahead *ahead
	pool  pool
	decoders
	stats Stats
}

// progressStep is how many bytes lie between two calls of Progress.
const progressStep = 1 << 20

// progress tells Progress of part i.
func (f *fetcher) progress(i int, size int64) func(bytes int64) {
	var told int64
	return func(bytes int64) {
		if f.o.Progress != nil && bytes > told && (bytes-told >= progressStep || bytes == size) {
			told = bytes
			f.o.Progress(i, bytes)
		}
	}
}

// part streams one part through goroutines with buffers between them: network,
// SHA-256 of what travelled, decompression, SHA-256 of the tar, and in the
// caller's own the tar's entries.
func (f *fetcher) part(ctx context.Context, i int, part dsas.Part) error {
	decode, err := f.forMedia(part.MediaType)
	if err != nil {
		return fmt.Errorf("part %d (%s): %w", i+1, part.Title, err)
	}
	travelled, inside := sha256.New(), sha256.New()

	net := newPipeline(ctx, &f.pool)
	defer net.stop()
	head := f.ahead.take(i)
	src := head.src
	packed := net.reader(net.tap(net.feed(f.ahead, head, netBlocks, f.progress(i, part.Size)), travelled))

	dec := newPipeline(ctx, &f.pool)
	defer dec.stop()
	chunks, err := decode(dec, packed)
	if err != nil {
		return fmt.Errorf("part %d (%s): %w", i+1, part.Title, err)
	}
	checkTar := part.DiffID != "" && !f.o.SkipDiffID
	if checkTar {
		chunks = dec.tap(chunks, inside)
	}
	tarStream := dec.reader(chunks)
	tarStream.left = f.u.begin(part)

	unpackErr := f.u.unpack(ctx, tarStream)
	if unpackErr == nil || !isSystem(unpackErr) {
		// On to the end: what follows the tar's last entry belongs to the
		// digest; and where zstd or tar cannot be read, the digest tells a
		// part damaged on its way from one that was made so.
		if _, err := io.Copy(io.Discard, tarStream); unpackErr == nil {
			unpackErr = err
		}
		dec.stop()
		io.Copy(io.Discard, packed) // what a decoder that failed has left
	}
	dec.stop()
	net.stop()
	src.close()
	f.stats.Bytes += src.off
	f.stats.Resumes += src.resumes

	switch {
	case src.fatal != nil:
		return src.fatal
	case ctx.Err() != nil:
		return fmt.Errorf("part %d (%s): %w", i+1, part.Title, ctx.Err())
	case isSystem(unpackErr):
		return fmt.Errorf("part %d (%s): %w", i+1, part.Title, unpackErr)
	}
	if got := digestOf(travelled); got != part.Digest {
		return &DigestError{Part: i, Title: part.Title, Want: part.Digest, Got: got}
	}
	if unpackErr != nil {
		return &ContentError{Part: i, Title: part.Title, Err: unpackErr}
	}
	if checkTar {
		if got := digestOf(inside); got != part.DiffID {
			return &DigestError{Part: i, Title: part.Title, Want: part.DiffID, Got: got, Tar: true}
		}
	}
	return nil
}
