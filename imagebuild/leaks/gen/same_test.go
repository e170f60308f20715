package main

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zricethezav/gitleaks/v8/detect"

	"dsas/imagebuild/leaks"
)

// TestSame compares with gitleaks itself, over gitleaks's own sources (its
// rules' examples are there), this project's, and $DSAS_LEAKS_CORPUS.
func TestSame(t *testing.T) {
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	theirs := detect.NewDetector(cfg)
	theirs.IgnoreGitleaksAllow = true // only a written reason is one
	ours, err := leaks.New()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/zricethezav/gitleaks/v8").Output()
	if err != nil {
		t.Fatal(err)
	}
	found, files := 0, 0
	for _, top := range []string{strings.TrimSpace(string(dir)), "../../..", os.Getenv("DSAS_LEAKS_CORPUS")} {
		if top == "" {
			continue
		}
		err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				if e != nil && e.IsDir() && (e.Name() == ".git" || e.Name() == "build") {
					return fs.SkipDir
				}
				return err
			}
			b, err := os.ReadFile(p)
			if err != nil || len(b) > 1<<20 || bytes.IndexByte(b, 0) >= 0 {
				return err
			}
			files++
			var want, got []leaks.Finding
			for _, f := range theirs.Detect(detect.Fragment{Raw: string(b), FilePath: p}) {
				want = append(want, leaks.Finding{Rule: f.RuleID, Reason: f.Description, Line: max(1, f.StartLine+1)})
			}
			for _, f := range ours.Scan(p, b) {
				if _, ok := cfg.Rules[f.Rule]; ok {
					f.Line = max(1, f.Line)
					got = append(got, f)
				}
			}
			for _, list := range []*[]leaks.Finding{&want, &got} {
				slices.SortFunc(*list, func(a, b leaks.Finding) int {
					if a.Line != b.Line {
						return a.Line - b.Line
					}
					return strings.Compare(a.Rule, b.Rule)
				})
				*list = slices.Compact(*list)
			}
			found += len(want)
			if !slices.Equal(got, want) {
				t.Errorf("Scan(%s) = %v\nwant %v", p, got, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d findings in %d files", found, files)
	if found < 500 {
		t.Errorf("gitleaks finds %d secrets; want at least 500, or nothing is compared", found)
	}
}
