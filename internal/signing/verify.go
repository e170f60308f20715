// Package signing makes and checks the signatures of releases, in minisign's
// format (jedisct1.github.io/minisign: Ed25519 over BLAKE2b-512). Signed is a
// release's OCI image manifest, byte for byte; the trusted comment, which is
// signed too, says what the release is called, so that none passes for another.
//
// It is linked into the init: what checks (this file) wants no more than
// Ed25519 and BLAKE2b.
package signing

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"

	"dsas"
)

// InitramfsKeys is where the public keys lie in an initramfs.
const InitramfsKeys = "/etc/dsas/release-keys"

// PubExt is what names of public keys end with.
const PubExt = ".pub"

// Key is a public key.
type Key struct{ minisign.PublicKey }

// KeyID gives a key's ID as people read it: 16 hex digits.
func (k Key) KeyID() string { return keyID(k.ID()) }

func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }

// ParseKey reads a public key as minisign writes it, with or without its comment.
func ParseKey(text string) (Key, error) {
	var k Key
	if err := k.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		return Key{}, fmt.Errorf("public key: %w: %w", err, dsas.ErrInvalid)
	}
	return k, nil
}

// Keys are public keys that are trusted.
type Keys []Key

// ParseKeys reads those that a boot set names.
func ParseKeys(texts []string) (Keys, error) {
	var out Keys
	for _, t := range texts {
		k, err := ParseKey(t)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}

// ReadKeys reads the public keys of a folder, which are its files "*.pub"; none
// where there is no folder. One that cannot be read is an error: it may be the one
// that everything is signed by.
func ReadKeys(dir string) (Keys, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("release keys: %w", err)
	}
	var out Keys
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), PubExt) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("release keys: %w", err)
		}
		k, err := ParseKey(string(b))
		if err != nil {
			return nil, fmt.Errorf("release keys: %s: %w", filepath.Join(dir, e.Name()), err)
		}
		out = append(out, k)
	}
	return out, nil
}

// Both gives those keys that are in both lists.
func (ks Keys) Both(others Keys) (out Keys) {
	for _, k := range ks {
		if slices.ContainsFunc(others, func(o Key) bool { return o.Equal(k.PublicKey) }) {
			out = append(out, k)
		}
	}
	return out
}

// String lists the keys' IDs.
func (ks Keys) String() string {
	if len(ks) == 0 {
		return "none"
	}
	ids := make([]string, len(ks))
	for i, k := range ks {
		ids[i] = k.KeyID()
	}
	return strings.Join(ids, ", ")
}

// Statement is what a signature says, once it is proven.
type Statement struct {
	Release string    // "web:7"
	Time    time.Time // of the signing, by the clock of who signed
	Key     string    // ID of the key
}

// String is one line for people.
func (s Statement) String() string {
	return fmt.Sprintf("release %s, signed %s by key %s", s.Release, s.Time.UTC().Format("2006-01-02 15:04"), s.Key)
}

// Refused says why a release is not taken. It wraps dsas.ErrDenied.
type Refused struct{ Reason string }

// Error implements error.
func (e *Refused) Error() string { return e.Reason }

// Unwrap makes it a dsas.ErrDenied.
func (e *Refused) Unwrap() error { return dsas.ErrDenied }

func refused(format string, args ...any) error { return &Refused{fmt.Sprintf(format, args...)} }

// Check wants a signature of s.Manifest by one of the keys that names the
// release, "web:7", and gives what the manifest says; role is what the node is to
// be. Nothing that is not signed is used. Its error is a *Refused and says
// what is wrong with each of the signatures.
func (ks Keys) Check(s dsas.Signed, release, role string) (dsas.Manifest, Statement, error) {
	st, err := ks.statement(s, release)
	if err != nil {
		return dsas.Manifest{}, Statement{}, err
	}
	m, err := dsas.ParseImageManifest(s.Manifest)
	if err != nil {
		return dsas.Manifest{}, Statement{}, refused("release %s: its signature is good and its manifest is not: %v", release, err)
	}
	if m.Role != role {
		return dsas.Manifest{}, Statement{}, refused("release %s: what is signed is an image of role %s, not of %s", release, m.Role, role)
	}
	return m, st, nil
}

func (ks Keys) statement(s dsas.Signed, release string) (Statement, error) {
	if len(ks) == 0 {
		return Statement{}, refused("release %s: there is no release key that is trusted here", release)
	}
	if len(s.Signatures) == 0 {
		return Statement{}, refused("release %s is not signed", release)
	}
	var reasons []string
	for _, text := range s.Signatures {
		st, err := ks.verify(s.Manifest, text)
		if err == nil && st.Release != release {
			err = fmt.Errorf("key %s signed it as release %.80q", st.Key, st.Release)
		}
		if err == nil {
			return st, nil
		}
		if r := err.Error(); !slices.Contains(reasons, r) {
			reasons = append(reasons, r)
		}
	}
	return Statement{}, refused("release %s: %s", release, strings.Join(reasons, "; "))
}

// verify proves one signature and reads what it says.
func (ks Keys) verify(manifest []byte, text string) (Statement, error) {
	var sig minisign.Signature
	if err := sig.UnmarshalText([]byte(text)); err != nil {
		return Statement{}, fmt.Errorf("a signature cannot be read (%w)", err)
	}
	st := Statement{Key: keyID(sig.KeyID)}
	known, good := false, false
	for _, k := range ks {
		if k.ID() != sig.KeyID {
			continue
		}
		known = true
		r := minisign.NewReader(bytes.NewReader(manifest))
		if _, err := io.Copy(io.Discard, r); err != nil {
			return Statement{}, err
		}
		good = good || sig.Algorithm == minisign.HashEdDSA && r.Verify(k.PublicKey, []byte(text))
	}
	switch {
	case !known:
		return Statement{}, fmt.Errorf("it is signed by key %s, which is not trusted here (trusted: %s)", st.Key, ks)
	case !good:
		return Statement{}, fmt.Errorf("the signature by key %s is not of this manifest: one of them was changed", st.Key)
	}
	return st, st.parse(sig.TrustedComment)
}

// comment writes what parse reads: minisign's own "timestamp:" and our "release:",
// tabs between.
func (s Statement) comment() string {
	return "timestamp:" + strconv.FormatInt(s.Time.Unix(), 10) + "\trelease:" + s.Release
}

func (s *Statement) parse(comment string) error {
	for f := range strings.SplitSeq(comment, "\t") {
		key, value, _ := strings.Cut(f, ":")
		switch key {
		case "timestamp":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return fmt.Errorf("key %s signed it with a time that is none, %.40q", s.Key, value)
			}
			s.Time = time.Unix(n, 0)
		case "release":
			s.Release = value
		}
	}
	return nil
}
