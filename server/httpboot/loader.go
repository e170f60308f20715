package httpboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
	"dsas/server/boot"
)

// OpenLoader opens a loader's file; the name is compared, never looked up as
// it came. A file that is optional and not there is dsas.ErrNotFound.
func (s *Server) OpenLoader(name string) (*os.File, error) {
	if !slices.Contains(boot.LoaderFiles(), name) {
		return nil, fmt.Errorf("loader %.40q: %w", name, dsas.ErrNotFound)
	}
	f, err := os.Open(filepath.Join(s.LoaderDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("loader %s is not on this server; dsas loader ls says how to get it: %w", name, dsas.ErrNotFound)
	}
	return f, err
}

// HasLoader tells whether a loader's file is there.
func (s *Server) HasLoader(name string) bool {
	if s.LoaderDir == "" {
		return true
	}
	_, err := os.Stat(filepath.Join(s.LoaderDir, name))
	return err == nil
}

// loader sends an NBP to UEFI HTTP Boot. OVMF asks for the size first (HEAD).
func (s *Server) loader(w http.ResponseWriter, r *http.Request) {
	var mac dsas.MAC
	if text := chi.URLParam(r, "mac"); text != "" {
		var err error
		if mac, err = dsas.ParseMAC(text); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	from, err := remoteAddr(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	name := chi.URLParam(r, "file")
	f, err := s.OpenLoader(name)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer f.Close()
	// By its name the firmware takes it for an EFI program (UEFI specification
	// 2.10, section 24.7.2); the type says the same to those that look there.
	w.Header().Set("Content-Type", "application/efi")
	w.Header().Set("Cache-Control", "no-cache")
	start := s.Now()
	p := s.send(w, r, f)
	st, err := f.Stat()
	if err != nil || r.Method != http.MethodGet || p.sent != st.Size() {
		return
	}
	node, err := s.Store.NodeByMAC(r.Context(), mac)
	if err != nil || from != node.Address.Addr() && !s.OtherDHCP || !s.said.allow("nbp "+mac.String(), s.Now(), 5*time.Second) {
		return
	}
	s.event(r.Context(), dsas.Event{Node: node.Name, MAC: mac, Kind: dsas.KindNBP, Message: name, Bytes: st.Size(), Duration: s.Now().Sub(start)})
}

// GRUB answers what GRUB asks for by TFTP, at a path of package boot's: a text,
// or a file. from is who asks.
func (s *Server) GRUB(ctx context.Context, path string, from netip.Addr) (text string, f *os.File, err error) {
	if path == boot.GRUBFirst {
		return boot.GRUBConfig(), nil, nil
	}
	q, ok := boot.ParseGRUB(path)
	switch {
	case !ok:
		return "", nil, dsas.ErrNotFound
	case q.Blob != "":
		f, err = s.bootFile(q.Blob)
		return "", f, err
	case q.Failed != "":
		if err := s.noteFailure(ctx, q.MAC, from, q.Failed); err != nil {
			return "", nil, err
		}
		return "# noted\n", nil, nil
	}
	text, err = s.grubConfig(ctx, q, from)
	return text, nil, err
}

func (s *Server) grubConfig(ctx context.Context, q boot.GRUBFile, from netip.Addr) (string, error) {
	arch, ok := boot.GRUBArch(q.CPU)
	if !ok {
		return "", fmt.Errorf("GRUB for %.20q: %w", q.CPU, dsas.ErrNotFound)
	}
	if arch == dsas.ArchEFIX64 {
		plan, params, err := s.Begin(ctx, boot.StepGRUBConfig, q.MAC, from, q.Role)
		if err != nil {
			return "", err
		}
		return plan.GRUBConfig(params), nil
	}
	// There is no kernel for it: no boot begins, and the box is told why.
	req, err := s.Request(ctx, boot.StepGRUBConfig, q.MAC, from, "")
	if err != nil {
		return "", err
	}
	req.Arch, req.HasArch = arch, true
	plan := boot.Decide(req)
	return plan.GRUBConfig(boot.Params{}), nil
}

// bootFile opens kernel or initramfs, and nothing else: a role's image is too
// large to go by TFTP.
func (s *Server) bootFile(d dsas.Digest) (*os.File, error) {
	what, err := s.Releases.BootFile(d)
	if err != nil {
		return nil, err
	}
	if what == "" {
		return nil, fmt.Errorf("blob %s is no release's kernel or initramfs: %w", d.Short(), dsas.ErrNotFound)
	}
	f, _, err := s.Blobs.Blob(d)
	return f, err
}

// GRUBSent records that a box took its kernel or initramfs by TFTP.
func (s *Server) GRUBSent(ctx context.Context, path string, from netip.Addr, size int64, took time.Duration) {
	if q, ok := boot.ParseGRUB(path); ok && q.Blob != "" {
		s.bootFileSent(ctx, from, q.Blob, size, took)
	}
}

// noteFailure takes a loader's word that it could not go on. It is unsigned:
// anyone on the wire could say it, so it is recorded once a minute per MAC and
// changes nothing but what is shown.
func (s *Server) noteFailure(ctx context.Context, mac dsas.MAC, from netip.Addr, why string) error {
	node, err := s.Store.NodeByMAC(ctx, mac)
	if errors.Is(err, dsas.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if (from == node.Address.Addr() || s.OtherDHCP) && s.said.allow("failed "+mac.String(), s.Now(), time.Minute) {
		s.event(ctx, dsas.Event{Node: node.Name, MAC: mac, Kind: dsas.KindLoaderFailed, Message: "the loader could not go on: " + clip(strings.TrimSpace(why), 80)})
	}
	return nil
}
