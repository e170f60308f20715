package imagebuild

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"dsas/initramfs/modindex"
)

// modulesLayer makes usr/lib/modules/RELEASE: what servers in general need and
// what the role names, with all that needs. It has the index our init reads and
// depmod's files, by which the kernel's own requests (modprobe) work. Roles
// with the same modules share it.
func modulesLayer(ctx context.Context, opt *Options, k *kernel, want []string) (*layer, error) {
	set, err := k.moduleSet()
	if err != nil {
		return nil, err
	}
	general, err := choose(set.Index, imageFolders, imageModules)
	if err != nil {
		return nil, err
	}
	own, err := set.Index.Closure(want...)
	if err != nil {
		return nil, fmt.Errorf("modules in role.yaml: %w", err)
	}
	mods := append(general, own...)
	slices.Sort(mods)
	mods = slices.Compact(mods)
	id := key("modules", k.id(), mods)
	if l, ok := cachedLayer(opt, "modules", id); ok {
		return l, nil
	}
	opt.say("collecting %d kernel modules", len(mods))
	stage := filepath.Join(opt.Cache, "work", "modules")
	dir := filepath.Join(stage, "lib/modules", k.Release)
	link := func(rel string) error {
		to := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.Link(filepath.Join(k.modules(), rel), to)
	}
	for _, rel := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if err := link(rel); err != nil {
			return nil, fmt.Errorf("modules: %w", err)
		}
	}
	for _, n := range mods {
		if err := link(set.Index.Modules[n].Path); err != nil {
			return nil, fmt.Errorf("modules: %w", err)
		}
	}
	if err := runAll(command(ctx, "depmod", "-b", stage, k.Release)); err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	var buf bytes.Buffer
	if err := set.Index.Subset(mods).Write(&buf); err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, modindex.File), buf.Bytes(), 0o644); err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	top := "usr/lib/modules/" + k.Release
	return makeLayer(ctx, opt, "modules", id, func(w *layerWriter) error {
		if err := w.parents(top + "/x"); err != nil {
			return err
		}
		return w.moduleTree(dir, top)
	})
}
