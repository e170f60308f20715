package imagebuild

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"dsas/imagebuild/leaks"
)

// source is a text of a role's definition: all that is in its folder but
// links.
type source struct {
	Path string
	Data []byte
}

// readSources gives the texts of a definition, sorted by path.
func readSources(def Definition) ([]source, error) {
	if def.FS == nil {
		return nil, nil
	}
	var out []source
	err := fs.WalkDir(def.FS, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			if errors.Is(err, fs.ErrNotExist) && p == "." {
				return nil
			}
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if fi.Size() > maxRoleFile {
			return nil // refused by readFiles where it matters
		}
		b, err := fs.ReadFile(def.FS, p)
		if err != nil {
			return err
		}
		out = append(out, source{p, b})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("role definition: %w", err)
	}
	return out, nil
}

// checkSources looks for secrets in a role's own files with all the rules
// there are. In what is no text, only for keys.
func checkSources(sources []source) ([]Finding, error) {
	scanner, err := leaks.New()
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, s := range sources {
		inTree, isFile := strings.CutPrefix(s.Path, "files/")
		var own []Finding
		if isFile && (inTree == "etc/shadow" || inTree == "etc/gshadow") {
			own = passwordsIn(inTree, s.Data)
		}
		if len(s.Data) > maxSecretFile || bytes.IndexByte(s.Data[:min(len(s.Data), 8<<10)], 0) >= 0 {
			own = append(own, secretsIn(s.Path, s.Data)...)
		} else {
			for _, f := range scanner.Scan(s.Path, s.Data) {
				own = append(own, Finding{Line: f.Line, Rule: f.Rule, Reason: strings.TrimSuffix(f.Reason, "."), Way: wayOf(s.Path)})
			}
			// A key without its end, which gitleaks does not take for one.
			if !slices.ContainsFunc(own, func(f Finding) bool { return f.Rule == "private-key" }) {
				own = append(own, secretsIn(s.Path, s.Data)...)
			}
		}
		for _, f := range own {
			f.Path = s.Path
			out = append(out, f)
		}
	}
	return out, nil
}

func wayOf(p string) string {
	if strings.HasPrefix(p, "templates/") || path.Base(p) == "dsas.conf" || p == "role.yaml" {
		return "what is rendered travels the boot network: keep the secret on the node's disk, or where the node fetches it by itself"
	}
	return "everyone on the boot network can fetch an image: keep the secret on the node's disk, or where the node fetches it by itself"
}
