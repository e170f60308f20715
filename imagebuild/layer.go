package imagebuild

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"dsas"
	"dsas/internal/zframes"
)

// layer is one built part and what later layers must know of it.
type layer struct {
	Part dsas.Part
	// Dirs are the folders it has, so that a layer above that puts a file into
	// one restates its owner and mode and does not change them.
	Dirs map[string]dirAttr
	index
}

type dirAttr struct {
	Mode     int64
	UID, GID int
}

// layerName is where a layer's description is cached; its bytes are in the store.
func layerName(opt *Options, kind, id string) string {
	return filepath.Join(opt.Cache, "layers", kind+"-"+id+".json")
}

// cachedLayer gives a layer that was built from the same inputs and is still
// in the store.
func cachedLayer(opt *Options, kind, id string) (*layer, bool) {
	var l layer
	if !readJSON(layerName(opt, kind, id), &l) || !opt.Store.Has(l.Part.Digest, l.Part.Size) {
		return nil, false
	}
	return &l, true
}

// makeLayer stores what write puts into the tar as a layer: compressed with
// zstd at level 3, which is fast to build, in frames that a node decompresses
// several of at once.
func makeLayer(ctx context.Context, opt *Options, kind, id string, write func(*layerWriter) error) (*layer, error) {
	pr, pw := io.Pipe()
	plain := sha256.New()
	opt.say("writing the layer %s", kind)
	l := &layer{Dirs: map[string]dirAttr{}, index: index{Names: map[string]string{}}, Part: dsas.Part{MediaType: dsas.MediaTarZstd, Title: kind}}
	var g errgroup.Group
	g.Go(func() error {
		err := func() error {
			zw, err := zframes.NewWriter(pw)
			if err != nil {
				return err
			}
			lw := &layerWriter{ctx: ctx, tar: tar.NewWriter(io.MultiWriter(zw, plain)), layer: l, allow: opt.allow, fraction: opt.fraction}
			if err := write(lw); err != nil {
				zw.Close()
				return err
			}
			if err := lw.tar.Close(); err != nil {
				zw.Close()
				return err
			}
			return zw.Close()
		}()
		pw.CloseWithError(err)
		return err
	})
	var err error
	l.Part.Digest, l.Part.Size, err = opt.Store.Put(ctx, pr)
	pr.CloseWithError(err)
	if werr := g.Wait(); werr != nil && err != nil {
		err = werr // why the reader saw an error
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", kind, err)
	}
	l.Part.DiffID = dsas.Digest("sha256:" + hex.EncodeToString(plain.Sum(nil)))
	opt.say("layer %s: %.1f MiB, %.1f MiB unpacked", kind, mib(l.Part.Size), mib(l.Part.Unpacked))
	if id != "" {
		if err := writeJSON(layerName(opt, kind, id), l); err != nil {
			return nil, fmt.Errorf("layer %s: %w", kind, err)
		}
		pruneOld(filepath.Join(opt.Cache, "layers"), 200)
	}
	return l, nil
}
