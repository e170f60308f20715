package transfer

import (
	"encoding/json"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// readConfig reads an image's config, and refuses what no node could boot.
func (s *source) readConfig(img v1.Image) error {
	raw, err := img.RawConfigFile()
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(raw) > maxJSON {
		return invalid("config of %d bytes", len(raw))
	}
	if err := json.Unmarshal(raw, &s.config); err != nil {
		return invalid("config: %v", err)
	}
	if n := len(s.config.RootFS.DiffIDs); n == 0 || n > maxLayers {
		return invalid("%d layers; 1 to %d may be", n, maxLayers)
	}
	if c := s.config; c.OS != "linux" || c.Architecture != "amd64" {
		return invalid("it is for %.40s/%.40s; nodes are linux/amd64", c.OS, c.Architecture)
	}
	return nil
}

// historyTitles are the names of n layers, as a config of ours has them where
// annotations are lost, else numbers.
func historyTitles(history []v1.History, n int) []string {
	var out []string
	for _, h := range history {
		if title, ok := strings.CutPrefix(h.CreatedBy, historyWords); ok && isTitle(title) && !h.EmptyLayer {
			out = append(out, title)
		}
	}
	if len(out) == n && len(history) == n {
		return out
	}
	out = out[:0]
	for i := range n {
		out = append(out, fmt.Sprintf("layer %d", i+1))
	}
	return out
}

// isTitle tells whether a layer's name can be shown as it is.
func isTitle(s string) bool {
	return len(s) > 0 && len(s) <= 60 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._-") == ""
}
