package imagebuild

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dsas"
)

// inUserNamespace tells whether root here is root of a user namespace only
// (user_namespaces(7)): it may make no device, and overlayfs keeps its marks
// in attributes of another name (overlayfs.rst, "userxattr").
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && len(f) >= 3 && !(len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295")
}

// Options of an overlay whose upper folder alone tells what changed: copies
// are whole (metacopy) and renames real (redirect_dir). With userxattr the
// kernel does it so without being told, and takes no redirect_dir=off. What is built
// in it is not brought to disk (volatile): it is read, and thrown away.
const (
	overlayRoot = "redirect_dir=off,metacopy=off,index=off,volatile"
	overlayUser = "userxattr,volatile"
)

// overlayFolders makes folders for an overlay below the cache's work folder.
func overlayFolders(opt *Options, names ...string) (dirs []string, err error) {
	if strings.ContainsAny(opt.Cache, ",:\\\"") {
		return nil, fmt.Errorf("cache folder %s: its name must have no comma, colon, quote or backslash (overlayfs): %w", opt.Cache, dsas.ErrInvalid)
	}
	for _, n := range names {
		dir := filepath.Join(opt.Cache, "work", n)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

func overlayOptions() string {
	if inUserNamespace() {
		return overlayUser
	}
	return overlayRoot
}
