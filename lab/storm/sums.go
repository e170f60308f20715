package storm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"sync"

	"dsas"
)

// sums checks what the nodes read. A node checks SHA-256; a thousand nodes on
// one machine would measure little else, so the first reader of a blob does
// that and the others compare its CRC-32C, which costs next to nothing.
type sums struct {
	mu   sync.Mutex
	want map[string]uint32 // by digest, once a SHA-256 was right

	buffers sync.Pool
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// resumed is a transfer that may break and go on.
type resumed struct {
	at  int64 // bytes read
	crc uint32
	sha hash.Hash // nil: the CRC is enough
	on  bool
}

// read reads url from where r is to its end, and checks it.
func (s *sums) read(ctx context.Context, h *http.Client, url string, r *resumed) error {
	digest := url[strings.LastIndexByte(url, '/')+1:]
	if !r.on {
		r.on = true
		s.mu.Lock()
		if _, known := s.want[digest]; !known {
			r.sha = sha256.New()
		}
		s.mu.Unlock()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("GET %s: %w: %w", url, err, dsas.ErrInvalid)
	}
	if r.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", r.at))
	}
	resp, err := h.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK && r.at == 0, resp.StatusCode == http.StatusPartialContent && r.at > 0:
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("GET %s: %w", url, dsas.ErrNotFound)
	default:
		return fmt.Errorf("GET %s from %d: %s", url, r.at, resp.Status)
	}
	if err := s.drain(resp.Body, r); err != nil {
		return err
	}
	return s.check(digest, r)
}

func (s *sums) drain(from io.Reader, r *resumed) error {
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, 64<<10)
		buf = &b
	}
	defer s.buffers.Put(buf)
	for {
		n, err := from.Read(*buf)
		r.at += int64(n)
		r.crc = crc32.Update(r.crc, castagnoli, (*buf)[:n])
		if r.sha != nil {
			r.sha.Write((*buf)[:n])
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *sums) check(digest string, r *resumed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.sha != nil {
		if got := "sha256:" + hex.EncodeToString(r.sha.Sum(nil)); got != digest {
			return fmt.Errorf("%s came as %s: %w", digest, got, dsas.ErrInvalid)
		}
		if s.want == nil {
			s.want = map[string]uint32{}
		}
		s.want[digest] = r.crc
		return nil
	}
	if s.want[digest] != r.crc {
		return fmt.Errorf("%s came with other content: %w", digest, dsas.ErrInvalid)
	}
	return nil
}

// read reads url once, counting bytes alone.
func (s *storm) read(ctx context.Context, h *http.Client, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	var r resumed
	err = s.sums.drain(resp.Body, &r) // the same work per byte as a node's
	return r.at, err
}

// plainURL is where the plain server has the blob of a boot listener's URL.
func plainURL(base, url string) string {
	return strings.TrimRight(base, "/") + "/" + strings.TrimPrefix(url[strings.LastIndexByte(url, '/')+1:], "sha256:")
}
