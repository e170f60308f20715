package tftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dsas"
	"dsas/server/boot"
)

const configDir = "pxelinux.cfg/"

// maxName is the longest file name that is looked up, in bytes.
const maxName = 255

// ParsePath takes "nbp/MAC/FILE" apart. Without "nbp/MAC/", as an existing
// DHCP server's one boot file for all boxes has it, mac is zero, or the one
// that PXELINUX puts into the name of its configuration. Slashes in front and
// repeated ones (GRUB and shim put names together so) do not count; a name
// that a file could not have, or that leads out of a folder, is an error.
func ParsePath(name string) (mac dsas.MAC, file string, err error) {
	bad := func(why string) (dsas.MAC, string, error) {
		return dsas.MAC{}, "", fmt.Errorf("path %q: %s: %w", clip(name), why, dsas.ErrNotFound)
	}
	// Some ROMs read option 67 past its end, to the end option (docs/quirks.md).
	name = strings.TrimSuffix(name, "\xff")
	if len(name) > maxName {
		return bad("is longer than 255 bytes")
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
		return bad("has signs that no name of ours has")
	}
	parts := make([]string, 0, 8)
	for p := range strings.SplitSeq(name, "/") {
		switch p {
		case "":
		case ".", "..":
			return bad("leads elsewhere")
		default:
			parts = append(parts, p)
		}
	}
	if strings.HasSuffix(name, "/") || len(parts) == 0 {
		return bad("names no file")
	}
	if parts[0] == "nbp" {
		if len(parts) < 3 {
			return bad("names no file")
		}
		mac, err = dsas.ParseMAC(parts[1])
		if err != nil || mac.Dashed() != parts[1] {
			return bad("its second part is not a MAC with dashes")
		}
		parts = parts[2:]
	}
	file = strings.Join(parts, "/")
	if cfg, ok := strings.CutPrefix(file, configDir+"01-"); ok && mac.IsZero() {
		if mac, err = dsas.ParseMAC(cfg); err != nil || mac.Dashed() != cfg {
			return bad("names no MAC with dashes")
		}
	}
	return mac, file, nil
}

// loaders are the files of Config.Dir that are always there; the optional ones
// come by Open.
var loaders = [...]string{boot.FileUndionly, boot.FileSNPOnly, boot.FileLPXELINUX, boot.FileLdlinux}

// open finds a file of ParsePath's.
func (s *Server) open(ctx context.Context, mac dsas.MAC, file string, from netip.Addr) (Content, error) {
	for _, l := range loaders {
		if file == l {
			return s.openLoader(l)
		}
	}
	cfg, ok := strings.CutPrefix(file, configDir)
	if ok && !mac.IsZero() && s.PXELINUXConfig != nil {
		at, ok := boot.ParseConfigName(mac, cfg)
		if ok && at.Wait {
			return Bytes([]byte(boot.PXELINUXWait(mac, at))), nil
		}
		if ok {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			text, err := s.PXELINUXConfig(ctx, mac, from, at)
			if err != nil {
				return nil, err
			}
			return Bytes([]byte(text)), nil
		}
	}
	if s.Open == nil {
		return nil, dsas.ErrNotFound
	}
	c, err := s.Open(ctx, Request{MAC: mac, File: file, From: from})
	if err == nil && c == nil {
		err = dsas.ErrNotFound
	}
	return c, err
}

func (s *Server) openLoader(name string) (Content, error) {
	f, err := os.Open(filepath.Join(s.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("loader %s is not in %s; start the server anew to install it", name, s.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open loader: %w", err)
	}
	c, err := File(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open loader: %w", err)
	}
	return c, nil
}

// label names a file in the statistics.
func label(file string) string {
	for _, l := range loaders {
		if file == l {
			return l
		}
	}
	if strings.HasPrefix(file, configDir) {
		return strings.TrimSuffix(configDir, "/")
	}
	return "other"
}

func clip(s string) string { return s[:min(len(s), 120)] }
