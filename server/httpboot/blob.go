package httpboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
)

// What a reader of content must take, else it is broken off: a box that hangs
// must not hold a connection for ever. One that is only slow comes back with a
// Range request. 4 KiB/s is a third of what each of a thousand nodes gets of a
// link of 100 Mbit/s.
const (
	slowest   = 4 << 10                           // bytes per second, over each piece
	pieceSize = 256 << 10                         // bytes
	pieceTime = pieceSize / slowest * time.Second // unless Config says otherwise
)

// blob serves content by digest. It is public: the digest is the secret-free
// name of what anyone on the boot network may read (kernel, initramfs, parts).
// http.ServeContent answers Range, HEAD and If-None-Match, and sends from the
// file by sendfile.
func (s *Server) blob(w http.ResponseWriter, r *http.Request) {
	// iPXE writes the colon as %3A, and chi routes on the escaped path.
	text, err := url.PathUnescape(chi.URLParam(r, "digest"))
	if err != nil {
		s.refuse(w, http.StatusBadRequest, codeDigestInvalid, fmt.Sprintf("digest: %v", err))
		return
	}
	d, err := dsas.ParseDigest(text)
	if err != nil {
		s.refuseErr(w, r, err, codeBlobUnknown, codeDigestInvalid)
		return
	}
	f, size, err := s.Blobs.Blob(d)
	if err != nil {
		s.refuseErr(w, r, err, codeBlobUnknown, codeDigestInvalid)
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", `"`+string(d)+`"`)
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	start := s.Now()
	p := s.send(w, r, f)
	if p.slow {
		s.Log.Info("a reader was too slow", "remote", r.RemoteAddr, "digest", d.Short(), "bytes", p.sent)
	}
	if r.Method == http.MethodGet && p.sent == size {
		if from, err := remoteAddr(r); err == nil {
			s.bootFileSent(r.Context(), from, d, size, s.Now().Sub(start))
		}
	}
}

// send answers r with f, or the range of it that was asked for, as long as the
// reader keeps up.
func (s *Server) send(w http.ResponseWriter, r *http.Request, f io.ReadSeeker) *paced {
	// Of several ranges the answer would be a multipart text made in memory,
	// which no loader asks for. A server may ignore Range (RFC 9110 section 14.2).
	if strings.Contains(r.Header.Get("Range"), ",") {
		r.Header.Del("Range")
	}
	rc := http.NewResponseController(w)
	// Were the server's read deadline left, what notices that the other side has
	// gone would end the request's context in mid-transfer.
	rc.SetReadDeadline(time.Time{})
	p := &paced{ResponseWriter: w, rc: rc, pieceTime: s.PieceTime}
	http.ServeContent(p, r, "", time.Time{}, f)
	s.stats.blobBytes.Add(uint64(p.sent))
	switch {
	case p.slow:
		s.stats.slowReaders.Add(1)
	case p.err != nil:
		s.stats.brokenBlobs.Add(1)
	}
	return p
}

// paced is a ResponseWriter that gives its reader so much time for every piece.
// It hands the file on to net/http, which sends it by sendfile(2); a plain
// wrapper would hide that.
type paced struct {
	http.ResponseWriter
	rc        *http.ResponseController
	pieceTime time.Duration
	sent      int64
	slow      bool
	err       error
}

// Unwrap is for http.ResponseController.
func (p *paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *paced) Write(b []byte) (int, error) {
	p.rc.SetWriteDeadline(time.Now().Add(p.pieceTime))
	n, err := p.ResponseWriter.Write(b)
	p.done(int64(n), err)
	return n, err
}

// ReadFrom implements io.ReaderFrom, which http.ServeContent's io.CopyN looks for.
func (p *paced) ReadFrom(src io.Reader) (total int64, err error) {
	limited, ok := src.(*io.LimitedReader)
	to, canRead := p.ResponseWriter.(io.ReaderFrom)
	if !ok || !canRead {
		return io.Copy(writerOnly{p}, src)
	}
	for limited.N > 0 {
		p.rc.SetWriteDeadline(time.Now().Add(p.pieceTime))
		piece := &io.LimitedReader{R: limited.R, N: min(limited.N, pieceSize)}
		n, err := to.ReadFrom(piece)
		limited.N -= n
		total += n
		p.done(n, err)
		if err != nil || n == 0 {
			return total, err
		}
	}
	return total, nil
}

func (p *paced) done(n int64, err error) {
	p.sent += n
	if err != nil {
		p.err = err
		p.slow = errors.Is(err, os.ErrDeadlineExceeded)
	}
}

// writerOnly hides ReadFrom.
type writerOnly struct{ io.Writer }

// bootFileSent records that a box took its kernel or initramfs: the loader has
// no identity but its address, which is that of the boot it just began. Who
// runs already may fetch what it likes.
func (s *Server) bootFileSent(ctx context.Context, from netip.Addr, d dsas.Digest, size int64, took time.Duration) {
	what, err := s.Releases.BootFile(d)
	kind, ok := map[string]dsas.Kind{"kernel": dsas.KindKernel, "initramfs": dsas.KindInitramfs}[what]
	if err != nil || !ok {
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
