package imagebuild

import (
	"os"
	"strings"
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
// kernel does it so without being told, and takes no redirect_dir=off.
const (
	overlayRoot = "redirect_dir=off,metacopy=off,index=off"
	overlayUser = "userxattr"
)

func overlayOptions() string {
	if inUserNamespace() {
		return overlayUser
	}
	return overlayRoot
}
