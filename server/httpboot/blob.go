package httpboot

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"dsas"
)

// blobTimeout bounds one transfer: a reader slower than this comes back with
// a Range request.
const blobTimeout = 15 * time.Minute

// blob serves content by digest. It is public: the digest is the secret-free
// name of what anyone on the boot network may read (kernel, initramfs, parts).
// http.ServeContent answers Range, HEAD and If-None-Match, and sends from the
// file by sendfile.
func (s *Server) blob(w http.ResponseWriter, r *http.Request) {
	// iPXE writes the colon as %3A, and chi routes on the escaped path.
	text, err := url.PathUnescape(chi.URLParam(r, "digest"))
	if err != nil {
		s.fail(w, r, fmt.Errorf("digest: %w: %w", err, dsas.ErrInvalid))
		return
	}
	d, err := dsas.ParseDigest(text)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f, size, err := s.Blobs.Blob(d)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", `"`+string(d)+`"`)
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	start := s.Now()
	// The read deadline too: were it left at the server's, what notices that the
	// other side has gone would end the request's context in mid-transfer.
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(blobTimeout))
	rc.SetWriteDeadline(time.Now().Add(blobTimeout))
	ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
	http.ServeContent(ww, r, "", time.Time{}, f)
	if r.Method == http.MethodGet && int64(ww.BytesWritten()) == size {
		if from, err := remoteAddr(r); err == nil {
			s.bootFileSent(r.Context(), from, d, size, s.Now().Sub(start))
		}
	}
}

// bootFileSent records that a box took its kernel or initramfs: the loader has
// no identity but its address, which is that of the boot it just began. Who
// runs already may fetch what it likes.
func (s *Server) bootFileSent(ctx context.Context, from netip.Addr, d dsas.Digest, size int64, took time.Duration) {
	set, err := s.Blobs.Boot()
	if err != nil {
		return
	}
	kind := dsas.KindKernel
	switch d {
	case set.Kernel.Digest:
	case set.Initramfs.Digest:
		kind = dsas.KindInitramfs
	default:
		return
	}
	ctx = context.WithoutCancel(ctx)
	begins := func(b dsas.Boot, err error) bool {
		return err == nil && b.FirstEvent.IsZero() && s.Now().Sub(b.Created) <= tokenLife
	}
	b, err := s.Store.BootAt(ctx, from)
	if !begins(b, err) {
		id, ok := s.guests.boot(from)
		if !ok {
			return
		}
		if b, err = s.Store.Boot(ctx, id); !begins(b, err) {
			return
		}
	}
	s.event(ctx, dsas.Event{Node: b.Node, MAC: b.MAC, Boot: b.ID, Kind: kind, Bytes: size, Duration: took})
}

func remoteAddr(r *http.Request) (netip.Addr, error) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("remote address %q: %w", r.RemoteAddr, dsas.ErrInvalid)
	}
	return ap.Addr().Unmap(), nil
}
