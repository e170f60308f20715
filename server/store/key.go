package store

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dsas"
	"dsas/internal/diskio"

	"golang.org/x/crypto/chacha20poly1305"
)

// box encrypts secrets at rest with XChaCha20-Poly1305. Each is bound to what
// it belongs to (its associated data), so that one put in another's place does
// not open. The nonce is random, 24 bytes, and stands in front.
type box struct{ aead cipher.AEAD }

func newBox(key []byte) (box, error) {
	aead, err := chacha20poly1305.NewX(key)
	return box{aead}, err
}

func (b box) seal(owner string, plain []byte) []byte {
	nonce := make([]byte, b.aead.NonceSize(), b.aead.NonceSize()+len(plain)+b.aead.Overhead())
	rand.Read(nonce) // never fails: crypto/rand ends the program instead
	return b.aead.Seal(nonce, nonce, plain, []byte(owner))
}

func (b box) open(owner string, sealed []byte) ([]byte, error) {
	n := b.aead.NonceSize()
	if len(sealed) < n {
		return nil, fmt.Errorf("decrypt %s: too short: %w", owner, dsas.ErrInvalid)
	}
	plain, err := b.aead.Open(nil, sealed[:n], sealed[n:], []byte(owner))
	if err != nil {
		return nil, fmt.Errorf("decrypt %s: damaged, or sealed with another key: %w", owner, dsas.ErrInvalid)
	}
	return plain, nil
}

// readKey reads the 32 byte key file. A key that others can read is refused, as
// ssh does it: it would be a secret in name only.
func readKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read key %s: mode is %04o and must be 0600; chmod 600 it: %w", path, info.Mode().Perm(), dsas.ErrInvalid)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(key) != chacha20poly1305.KeySize {
		return nil, fmt.Errorf("read key %s: holds %d bytes and must hold %d; restore it from a backup: %w", path, len(key), chacha20poly1305.KeySize, dsas.ErrInvalid)
	}
	return key, nil
}

// makeKey makes the key file, complete and on disk before it has its name, and
// leaves one alone that another process has made meanwhile.
func makeKey(path string) ([]byte, error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	defer os.Remove(tmp.Name())
	key := make([]byte, chacha20poly1305.KeySize)
	rand.Read(key)
	_, err = tmp.Write(key)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", path, err)
	}
	if err := os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
		return readKey(path)
	} else if err != nil {
		return nil, fmt.Errorf("make key %s: %w", path, err)
	}
	return key, diskio.SyncDir(dir)
}
