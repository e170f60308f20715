package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"dsas"
	"dsas/internal/signing"
)

// checkRelease refuses a release that no key in the initramfs has signed, and
// puts what is signed in the place of what the server says of the image.
func (b *boot) checkRelease(keys string) error {
	err := b.signedRelease(keys)
	if err != nil {
		b.event(dsas.Event{Kind: dsas.KindPartBad, Message: err.Error()})
		return err
	}
	b.con.Say("role %s: %s", b.cfg.Role.Name, b.signed)
	return nil
}

func (b *boot) signedRelease(folder string) error {
	keys, err := signing.ReadKeys(folder)
	if err != nil {
		return fmt.Errorf("release %s refused: the initramfs is damaged: %w: build it anew: dsas image build %s", b.cfg.Release, err, b.cfg.Role.Name)
	}
	if len(keys) == 0 {
		return fmt.Errorf("release %s refused: this initramfs has no release keys (%s), so that nothing can be checked: build it anew: dsas image build %s: %w",
			b.cfg.Release, folder, b.cfg.Role.Name, dsas.ErrDenied)
	}
	m, st, err := keys.Check(b.cfg.Signed, b.cfg.Release, b.cfg.Role.Name)
	if err != nil {
		return fmt.Errorf("release refused: %w; on the server, see dsas image show %s; as root, dsas image sign %s", err, b.cfg.Release, b.cfg.Release)
	}
	sum := sha256.Sum256(b.cfg.Signed.Manifest)
	m.Digest = dsas.Digest("sha256:" + hex.EncodeToString(sum[:]))
	b.cfg.Manifest, b.signed = m, st
	return nil
}
