package capture

import (
	"compress/gzip"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"dsas"
)

// Decompress gives the tar inside a layer of that media type.
func Decompress(media string, r io.Reader) (io.ReadCloser, error) {
	switch {
	case media == "", strings.HasSuffix(media, "zstd"):
		d, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case strings.HasSuffix(media, "gzip"):
		return gzip.NewReader(r)
	case strings.HasSuffix(media, "tar"):
		return io.NopCloser(r), nil
	}
	return nil, fmt.Errorf("layer of type %q: %w", media, dsas.ErrInvalid)
}
