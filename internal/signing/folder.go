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
	"strings"
	"syscall"
	"time"

	"aead.dev/minisign"

	"dsas"
)

// KeyExt is what names of private keys end with.
const KeyExt = ".key"

// Folder is where a site's keys are: ID.pub, by which releases may be signed,
// and ID.key, which sign them and may be kept elsewhere. It is root's; the server
// reads public keys there and no others.
type Folder string

// Pair is a key of the folder.
type Pair struct {
	Key
	Created time.Time
	Private bool // its private half is here: builds sign with it
}

// List gives the keys, the oldest first.
func (f Folder) List() ([]Pair, error) {
	entries, err := os.ReadDir(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("release keys: %w", err)
	}
	var out []Pair
	for _, e := range entries {
		base, ok := strings.CutSuffix(e.Name(), PubExt)
		if !ok {
			continue
		}
		name := filepath.Join(string(f), e.Name())
		if err := ownedWell(name); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("release keys: %w", err)
		}
		k, err := ParseKey(string(b))
		if err != nil {
			return nil, fmt.Errorf("release keys: %s: %w", name, err)
		}
		p := Pair{Key: k}
		if fi, err := e.Info(); err == nil {
			p.Created = fi.ModTime()
		}
		_, err = os.Lstat(filepath.Join(string(f), base+KeyExt))
		p.Private = err == nil
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b Pair) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// ownedWell refuses a key that others than root and who runs this could have put
// there: what is trusted by nodes is root's to say.
func ownedWell(name string) error {
	for _, p := range []string{name, filepath.Dir(name)} {
		fi, err := os.Stat(p)
		if err != nil {
			return fmt.Errorf("release keys: %w", err)
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() || fi.Mode()&0o022 != 0 {
			return fmt.Errorf("release keys: %s may be changed by others than root: chown root %s; chmod go-w %s: %w", p, p, p, dsas.ErrInvalid)
		}
	}
	return nil
}

// New makes a key pair. Its public half comes last: what is trusted can sign.
func (f Folder) New() (Pair, error) {
	fail := func(err error) (Pair, error) { return Pair{}, fmt.Errorf("make release key: %w", err) }
	pub, priv, err := minisign.GenerateKey(nil)
	if err != nil {
		return fail(err)
	}
	if _, err := os.Stat(string(f)); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(string(f), 0o755); err != nil {
			return fail(err)
		}
		if err := os.Chmod(string(f), 0o755); err != nil { // the server reads there, whatever the umask
			return fail(err)
		}
	}
	secret, err := priv.MarshalText()
	if err != nil {
		return fail(err)
	}
	p := Pair{Key: Key{pub}, Created: time.Now(), Private: true}
	public, err := pub.MarshalText()
	if err != nil {
		return fail(err)
	}
	base := filepath.Join(string(f), p.KeyID())
	if err := writeNew(base+KeyExt, append(secret, '\n'), 0o600); err != nil {
		return fail(err)
	}
	if err := writeNew(base+PubExt, append(public, '\n'), 0o644); err != nil {
		os.Remove(base + KeyExt)
		return fail(err)
	}
	return p, nil
}

// writeNew writes a file that must not be there yet, durably.
func writeNew(name string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(mode); err != nil { // whatever the umask
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// Remove takes a key's trust away, and its private half: the trust first.
func (f Folder) Remove(id string) error {
	list, err := f.List()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(p Pair) bool { return strings.EqualFold(p.KeyID(), id) })
	if i < 0 {
		return fmt.Errorf("release key %.40q: there is none in %s; dsas image key ls lists them: %w", id, f, dsas.ErrNotFound)
	}
	base := filepath.Join(string(f), list[i].KeyID())
	if err := os.Remove(base + PubExt); err != nil {
		return fmt.Errorf("remove release key: %w", err)
	}
	if err := os.Remove(base + KeyExt); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove release key: %w", err)
	}
	return nil
}

// Signer signs with a private key.
type Signer struct{ key minisign.PrivateKey }

// Signers gives those keys of the folder that can sign, the oldest first.
func (f Folder) Signers() ([]Signer, error) {
	list, err := f.List()
	if err != nil {
		return nil, err
	}
	var out []Signer
	for _, p := range list {
		if !p.Private {
			continue
		}
		s, err := ReadSigner(filepath.Join(string(f), p.KeyID()+KeyExt))
		if err != nil {
			return nil, err
		}
		if !s.Key().Equal(p.PublicKey) {
			return nil, fmt.Errorf("release keys: %s%s and %s are no pair: %w", p.KeyID(), KeyExt, PubExt, dsas.ErrInvalid)
		}
		out = append(out, s)
	}
	return out, nil
}

// ReadSigner reads a private key as minisign writes it without a password (-W).
func ReadSigner(name string) (Signer, error) {
	fail := func(err error) (Signer, error) { return Signer{}, fmt.Errorf("release key %s: %w", name, err) }
	fi, err := os.Stat(name)
	if err != nil {
		return fail(err)
	}
	if !fi.Mode().IsRegular() {
		return fail(fmt.Errorf("it is no file; name the one that ends in %s: %w", KeyExt, dsas.ErrInvalid))
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return fail(err)
	}
	var s Signer
	if minisign.IsEncrypted(b) {
		return fail(fmt.Errorf("it is protected by a password, which is not supported: %w", dsas.ErrInvalid))
	}
	if err := s.key.UnmarshalText([]byte(strings.TrimSpace(string(b)))); err != nil {
		return fail(fmt.Errorf("it is no private key of minisign: %w: %w", err, dsas.ErrInvalid))
	}
	if fi.Mode()&0o077 != 0 {
		return fail(fmt.Errorf("others may read it: chmod 600 %s, and make a new one if somebody did: %w", name, dsas.ErrInvalid))
	}
	return s, nil
}

// Key is the public half.
func (s Signer) Key() Key { return Key{s.key.Public().(minisign.PublicKey)} }

// Sign signs a release's manifest under the release's name.
func (s Signer) Sign(manifest []byte, release string, at time.Time) (string, error) {
	r := minisign.NewReader(bytes.NewReader(manifest))
	if _, err := io.Copy(io.Discard, r); err != nil {
		return "", fmt.Errorf("sign release %s: %w", release, err)
	}
	st := Statement{Release: release, Time: at, Key: s.Key().KeyID()}
	return string(r.SignWithComments(s.key, st.comment(), "dsas release "+release+", key "+st.Key)), nil
}
