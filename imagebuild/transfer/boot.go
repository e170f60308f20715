package transfer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"dsas"
)

// pickBoot finds what the release is to boot with.
func (im *Import) pickBoot(ctx context.Context, src *source, out *Imported) (dsas.BootSet, error) {
	if im.Boot != nil {
		return *im.Boot, nil
	}
	known, err := im.Store.Releases()
	if err != nil {
		return dsas.BootSet{}, err
	}
	// What a release of ours names is here, or comes with it. Docker archives have
	// nothing but the image, and tools that copy images leave the rest behind.
	for _, r := range known {
		if bootIs(r.Boot, src.config.Config.Labels) {
			return r.Boot, nil
		}
	}
	if src.bootAt != "" && src.blob != nil {
		boot, err := im.bringBoot(ctx, src)
		if err != nil {
			return boot, fmt.Errorf("the kernel and initramfs it names: %w; --kernel takes others", err)
		}
		return boot, nil
	}
	// The role's last, else the last of all.
	own := slices.DeleteFunc(slices.Clone(known), func(r dsas.Release) bool { return r.Role != im.Role })
	if len(own) == 0 {
		own = known
	}
	if len(own) == 0 {
		return dsas.BootSet{}, fmt.Errorf("there is no kernel in the store yet: dsas image build %s makes one, and dsas image import then takes it: %w", im.Role, dsas.ErrNotFound)
	}
	last := slices.MaxFunc(own, func(a, b dsas.Release) int { return cmp.Or(a.Created.Compare(b.Created), a.Number-b.Number) })
	if src.config.Config.Labels[labelBoot+"kernel"] != "" {
		out.Warnings = append(out.Warnings, fmt.Sprintf("it was released with a kernel %s that is not here; it boots with %s's, %s", src.config.Config.Labels[labelKernel], last.Name(), last.Boot.Release))
	}
	return last.Boot, nil
}

// bootIs tells whether a release's labels name b's content.
func bootIs(b dsas.BootSet, labels map[string]string) bool {
	named := 0
	for k := range labels {
		if strings.HasPrefix(k, labelBoot) {
			named++
		}
	}
	parts := b.Parts()
	for _, p := range parts {
		if labels[labelBoot+p.Title] != string(p.DiffID) || p.DiffID == "" {
			return false
		}
	}
	return named == len(parts)
}

// bringBoot fetches the kernel and initramfs that an exported release names.
func (im *Import) bringBoot(ctx context.Context, src *source) (dsas.BootSet, error) {
	var b dsas.BootSet
	rc, err := src.blob(ctx, src.bootAt, true)
	if err != nil {
		return b, err
	}
	raw, err := io.ReadAll(io.LimitReader(rc, maxJSON+1))
	rc.Close()
	if err != nil {
		return b, err
	}
	if s := sha256.Sum256(raw); sum(s[:]) != src.bootAt {
		return b, invalid("its manifest has digest %s, the image names %s", sum(s[:]), src.bootAt)
	}
	if b, err = dsas.ParseBootManifest(raw); err != nil {
		return b, err
	}
	if !isTitle(b.Release) {
		return b, invalid("kernel release %.80q", b.Release)
	}
	parts := []*dsas.Part{&b.Kernel, &b.Initramfs}
	if b.Firmware != nil {
		parts = append(parts, b.Firmware)
	}
	for _, p := range parts {
		if err := im.bringPart(ctx, src, p); err != nil {
			return b, fmt.Errorf("%s: %w", p.Title, err)
		}
		im.Progress(fmt.Sprintf("%s: %.1f MiB", p.Title, mib(p.Size)))
	}
	return b, nil
}

// bringPart stores a kernel or initramfs; the digest of its plain content, which
// is in the release's ID, is believed no more than the other, nor is the size of it.
func (im *Import) bringPart(ctx context.Context, src *source, p *dsas.Part) error {
	rc, err := src.blob(ctx, p.Digest, false)
	if err != nil {
		return err
	}
	defer rc.Close()
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := func() (err error) {
			travelled, inside := sha256.New(), sha256.New()
			passed := io.TeeReader(&limited{&stopping{ctx, rc}, &im.MaxUnpacked}, io.MultiWriter(travelled, pw))
			plain := &counter{w: inside}
			if p.DiffID == p.Digest {
				_, err = io.Copy(plain, passed)
			} else {
				err = plainCpios(passed, plain, &im.MaxUnpacked)
			}
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, passed); err != nil {
				return err
			}
			// For people; it counts no more than there is.
			if p.Unpacked > plain.n {
				p.Unpacked = 0
			}
			if got := sum(travelled.Sum(nil)); got != p.Digest {
				return invalid("its digest is %s, its manifest says %s", got, p.Digest)
			}
			if got := sum(inside.Sum(nil)); got != p.DiffID {
				return invalid("the digest of its content is %s, its manifest says %s", got, p.DiffID)
			}
			return nil
		}()
		pw.CloseWithError(err)
		done <- err
	}()
	_, n, putErr := im.Store.Put(ctx, pr)
	pr.CloseWithError(putErr)
	if err := <-done; err != nil && (putErr == nil || !errors.Is(err, putErr)) {
		return err
	}
	if putErr != nil {
		return putErr
	}
	if n != p.Size {
		return invalid("it has %d bytes, its manifest says %d", n, p.Size)
	}
	return nil
}
