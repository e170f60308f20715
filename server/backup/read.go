package backup

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"dsas"
	"dsas/internal/diskio"
)

// ageHeader begins every file that age made (age-encryption.org/v1).
const ageHeader = "age-encryption.org/"

// Identities gives what opens an encrypted backup; it is asked only for one.
type Identities func() ([]age.Identity, error)

// Sink takes one file of a backup. It must read r to its end.
type Sink func(f File, r io.Reader) error

// Read reads a backup and gives every file to sink. Only when Read has
// returned nil has everything been there, and had the digests that the
// manifest says; until then nothing that sink got may be used. With a nil sink
// the backup is only checked.
func Read(ctx context.Context, r io.Reader, ids Identities, sink Sink) (Manifest, error) {
	m, err := read(ctx, r, ids, sink)
	if err != nil {
		return m, fmt.Errorf("read backup: %w", err)
	}
	return m, nil
}

func read(ctx context.Context, r io.Reader, ids Identities, sink Sink) (m Manifest, err error) {
	in := bufio.NewReaderSize(diskio.Reader(ctx, r), 1<<16)
	plain := io.Reader(in)
	if head, _ := in.Peek(len(ageHeader)); string(head) == ageHeader {
		have, err := ids()
		if err != nil {
			return m, err
		}
		if plain, err = age.Decrypt(in, have...); err != nil {
			return m, fmt.Errorf("decrypt: %w", err)
		}
	}
	z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return m, err
	}
	defer z.Close()
	t := tar.NewReader(z)
	h, err := t.Next()
	if err != nil || h.Name != manifestName || h.Size > maxManifest {
		return m, errors.Join(fmt.Errorf("this is no backup that dsas made, or it is damaged: %w", dsas.ErrInvalid), err)
	}
	if err := json.NewDecoder(t).Decode(&m); err != nil {
		return m, fmt.Errorf("manifest: %w: %w", err, dsas.ErrInvalid)
	}
	if m.Format != Format {
		return m, fmt.Errorf("it has format %d and this program knows %d: use the dsas that made it (%s): %w", m.Format, Format, m.Version, dsas.ErrInvalid)
	}
	if len(m.Files) > maxFiles {
		return m, fmt.Errorf("it names %d files, at most %d: %w", len(m.Files), maxFiles, dsas.ErrInvalid)
	}
	for _, f := range m.Files {
		if err := checkName(f.Name); err != nil {
			return m, err
		}
	}
	if err := checkLinks(m.Files); err != nil {
		return m, err
	}
	for _, f := range m.Files {
		if err := readOne(t, f, sink); err != nil {
			return m, err
		}
	}
	if _, err := t.Next(); err != io.EOF {
		return m, errors.Join(fmt.Errorf("there is more in it than its manifest says: %w", dsas.ErrInvalid), err)
	}
	return m, nil
}

func readOne(t *tar.Reader, f File, sink Sink) error {
	h, err := t.Next()
	if err != nil {
		return fmt.Errorf("%s is missing, the backup is damaged: %w: %w", f.Name, err, dsas.ErrInvalid)
	}
	if h.Name != f.Name || h.Size != f.Size || h.Typeflag != f.typeflag() || h.Linkname != f.Link {
		return fmt.Errorf("%s with %d bytes where the manifest has %s with %d: %w", h.Name, h.Size, f.Name, f.Size, dsas.ErrInvalid)
	}
	sum := sha256.New()
	body := io.TeeReader(t, sum)
	if sink != nil {
		if err := sink(f, body); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		return fmt.Errorf("%s: the backup is damaged: %w", f.Name, err)
	}
	if got := digestOf(sum.Sum(nil)); got != f.Digest {
		return fmt.Errorf("%s has digest %s, want %s: the backup is damaged: %w", f.Name, got.Short(), f.Digest.Short(), dsas.ErrInvalid)
	}
	return nil
}
