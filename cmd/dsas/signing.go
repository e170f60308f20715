package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"dsas"
	"dsas/internal/signing"
	"dsas/server/blobs"
)

// releaseKeys gives the folder's keys that the builder works with, and makes the
// first one where there is none at all.
func releaseKeys(f signing.Folder, say func(string)) ([]signing.Pair, []signing.Signer, error) {
	list, err := f.List()
	if err != nil {
		return nil, nil, err
	}
	if len(list) == 0 {
		p, err := f.New()
		if err != nil {
			return nil, nil, err
		}
		say(fmt.Sprintf("made release key %s in %s: nodes take what is signed by it", p.KeyID(), f))
		list = append(list, p)
	}
	signers, err := f.Signers()
	return list, signers, err
}

// signingFolder is where who builds keeps keys: who is not root, in his own state
// folder, since the machine's are root's. A server that is to take such releases is
// given it by --keys-dir.
func (c *config) signingFolder() signing.Folder {
	if c.Keys == defaultKeysDir && (os.Geteuid() != 0 || os.Getenv(inNamespace) != "") {
		return signing.Folder(c.path("keys"))
	}
	return signing.Folder(c.Keys)
}

// initramfsKeys are the public keys as an initramfs has them.
func initramfsKeys(list []signing.Pair) map[string]string {
	out := map[string]string{}
	for _, p := range list {
		out[p.KeyID()] = p.String()
	}
	return out
}

// signRelease signs a release by all keys that its initramfs takes, unless they
// have signed it, and gives the IDs of those that sign it anew. One of before
// releases were signed, whose initramfs checks nothing, is signed by all.
func signRelease(ctx context.Context, store *blobs.Store, signers []signing.Signer, id dsas.Digest) (r *dsas.Release, by []string, err error) {
	if r, err = store.Release(id); err != nil {
		return nil, nil, err
	}
	inside, err := signing.ParseKeys(r.Boot.Keys)
	if err != nil {
		return nil, nil, fmt.Errorf("sign release %s: %w", r.Name(), err)
	}
	var have signing.Keys
	taken := false
	for _, s := range signers {
		own := signing.Keys{s.Key()}
		have = append(have, s.Key())
		if len(inside) > 0 && len(own.Both(inside)) == 0 {
			continue
		}
		taken = true
		if _, _, err := own.Check(r.Signed, r.Name(), r.Role); err == nil {
			continue
		}
		text, err := s.Sign(r.Signed.Manifest, r.Name(), time.Now())
		if err != nil {
			return nil, nil, err
		}
		// What is signed is read as a node reads it, before it is believed.
		if _, _, err := own.Check(dsas.Signed{Manifest: r.Signed.Manifest, Signatures: []string{text}}, r.Name(), r.Role); err != nil {
			return nil, nil, fmt.Errorf("sign: %w", err)
		}
		if err := store.Sign(ctx, r, s.Key().KeyID(), text); err != nil {
			return nil, nil, err
		}
		by = append(by, s.Key().KeyID())
	}
	if !taken {
		return nil, nil, fmt.Errorf("release %s: its initramfs takes only what is signed by key %s, and the private keys here are: %s; build it anew: dsas image build %s: %w",
			r.Name(), inside, have, r.Role, dsas.ErrConflict)
	}
	r, err = store.Release(id)
	return r, by, err
}

// signBuilt signs what a build gives, new or not.
func signBuilt(ctx context.Context, store *blobs.Store, f signing.Folder, signers []signing.Signer, rels []dsas.Release, say func(string)) error {
	for i := range rels {
		if len(signers) == 0 {
			say(fmt.Sprintf("release %s is not signed, and nodes will not take it: no private key is in %s; with the one that is kept elsewhere: dsas image sign %s --key FILE", rels[i].Name(), f, rels[i].Name()))
			continue
		}
		r, by, err := signRelease(ctx, store, signers, rels[i].ID)
		if err != nil {
			return err
		}
		if len(by) > 0 {
			say(fmt.Sprintf("release %s: signed by key %s", r.Name(), strings.Join(by, ", ")))
		}
		rels[i] = *r
	}
	return nil
}

// bootable tells why nodes would refuse a release, or the server does: nil where
// it is signed by a key that is both trusted here and in the release's initramfs.
func bootable(r *dsas.Release, trusted signing.Keys) error {
	if r.Damaged != "" {
		return fmt.Errorf("%s: %w", r.Damaged, dsas.ErrConflict)
	}
	inside, err := signing.ParseKeys(r.Boot.Keys)
	if err != nil {
		return fmt.Errorf("release %s: its initramfs: %w", r.Name(), err)
	}
	usable := trusted
	if len(inside) > 0 {
		if usable = trusted.Both(inside); len(usable) == 0 {
			return fmt.Errorf("release %s: its initramfs takes only what is signed by key %s, which is not trusted here (trusted: %s); build it anew: dsas image build %s: %w",
				r.Name(), inside, trusted, r.Role, dsas.ErrConflict)
		}
	}
	if _, _, err := usable.Check(r.Signed, r.Name(), r.Role); err != nil {
		// Nodes would deny it; to the operator nothing is denied.
		return fmt.Errorf("%v; on the server, as root: dsas image sign %s: %w", err, r.Name(), dsas.ErrConflict)
	}
	return nil
}
