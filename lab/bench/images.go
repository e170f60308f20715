package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dsas"
)

const mib = 1 << 20

// builtImages is what dsas image build --json says it made.
type builtImages struct {
	Boot     dsas.BootSet   `json:"boot"`
	Releases []dsas.Release `json:"releases"`
}

// roleNames are the roles that the boots and the demonstration want; a build
// of these finds nothing to do when either comes.
var roleNames = []string{"web", "lb", "db", "rescue"}

// build runs dsas image build on the state folder.
func (b *bench) build(ctx context.Context) (made builtImages, took time.Duration, err error) {
	// Options that are not set do not matter for a build, and so there is no
	// configuration file yet.
	conf := filepath.Join(b.state, "build.yaml")
	if err := errors.Join(os.MkdirAll(b.state, 0o755), os.WriteFile(conf, fmt.Appendf(nil, "state: %s\nroles: %s\nkeys: %s\n", b.state, filepath.Join(b.state, "roles"), filepath.Join(b.state, "keys")), 0o644)); err != nil {
		return made, 0, err
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, b.bin(), append([]string{"--json", "image", "build", "--config", conf}, roleNames...)...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	own(cmd)
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return made, 0, fmt.Errorf("dsas image build: %w: %s", err, strings.TrimSpace(errOut.String()))
	}
	took = time.Since(begin)
	if err := json.Unmarshal(out.Bytes(), &made); err != nil {
		return made, 0, fmt.Errorf("dsas image build: its answer: %w", err)
	}
	return made, took, nil
}

// images builds all images, and measures them and a build that changes
// nothing.
func (b *bench) images(ctx context.Context) error {
	_, err := os.Stat(filepath.Join(b.state, "cache"))
	cold := errors.Is(err, os.ErrNotExist)
	b.say("building %s where they are not yet ...", strings.Join(roleNames, ", "))
	made, took, err := b.build(ctx)
	if err != nil {
		return err
	}
	var again []float64
	for range 3 {
		if made, took, err := b.build(ctx); err != nil {
			return err
		} else if len(made.Releases) == len(roleNames) {
			again = append(again, took.Seconds())
		}
	}
	if cold {
		b.report.add(figure("image build, nothing cached", took.Seconds(), "s", "%s; packages fetched, kernel and initramfs too", strings.Join(roleNames, " ")))
	}
	b.report.add(figure("image build, nothing changed", median(again), "s", "%s, kernel and initramfs; median of %d", strings.Join(roleNames, " "), len(again)))

	note, err := b.initramfsNote(made.Boot)
	if err != nil {
		return err
	}
	b.report.add(figure("initramfs", float64(made.Boot.Initramfs.Size)/mib, "MiB", "%s", note).atMost(16))
	for _, rel := range made.Releases {
		m := rel.Manifest
		var packed, unpacked int64
		var layers []string
		for _, p := range m.Parts {
			packed, unpacked = packed+p.Size, unpacked+p.Unpacked
			layers = append(layers, fmt.Sprintf("%s %.1f", p.Title, float64(p.Size)/mib))
		}
		r := figure("image "+m.Role, float64(packed)/mib, "MiB", "%s; %d MiB in tmpfs", strings.Join(layers, ", "), unpacked/mib)
		if m.Role == "lb" {
			r = r.atMost(80)
		}
		b.report.add(r)
	}
	return nil
}

// initramfsNote says what the initramfs holds, and whether every NIC driver
// of the kernel's package is among it.
func (b *bench) initramfsNote(set dsas.BootSet) (string, error) {
	f, err := os.Open(filepath.Join(b.state, "images", "blobs", "sha256", set.Initramfs.Digest.Hex()))
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	defer f.Close()
	in, err := listInitramfs(f)
	if err != nil {
		return "", err
	}
	there, err := nicDrivers(filepath.Join(b.state, "cache", "kernel"), set.Release)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, name := range there {
		if !in.modules[name] {
			missing = append(missing, name)
		}
	}
	note := fmt.Sprintf("%d of Debian's %d Ethernet drivers; unpacked %.0f MiB: programs %.0f, %d modules %.0f", len(there)-len(missing), len(there),
		float64(in.total)/mib, float64(in.programs)/mib, len(in.modules), float64(in.moduleBytes)/mib)
	if len(missing) > 0 {
		slices.Sort(missing)
		note += "; missing: " + strings.Join(missing, " ")
	}
	if set.Firmware != nil {
		note += fmt.Sprintf("; firmware apart: %.1f MiB", float64(set.Firmware.Size)/mib)
	}
	return note, nil
}

// nicDrivers lists the modules below drivers/net/ethernet of a kernel's
// package, by file name.
func nicDrivers(cache, release string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(cache, "linux-image-"+release+"_*", "modules", "kernel", "drivers", "net", "ethernet"))
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("modules of %s in %s: %w", release, cache, dsas.ErrNotFound)
	}
	var names []string
	// Several builds of one release differ in little: the newest name is last.
	err = filepath.WalkDir(found[len(found)-1], func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			names = append(names, filepath.Base(path))
		}
		return err
	})
	return names, err
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(v))[len(v)/2]
}

// unpack runs the benchmark of the package that does it on a node.
func (b *bench) unpack(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "dsas-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "unpack.json")
	// In a mount namespace with a /dev/shm of its own: a benchmark that is
	// interrupted cannot remove its trees, and so they go with the namespace.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", `mount -t tmpfs dsas-bench /dev/shm && exec "$@"`, "sh",
		"go", "test", "-run", "^$", "-bench", "^BenchmarkUnpack$", "-benchtime", "1x", "-count", "1", "-timeout", "10m", "./initramfs/rootfs")
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "DSAS_BENCH_JSON="+name, "DSAS_CI=1") // a missing tool fails and does not skip
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	own(cmd)
	// go test passes an interrupt on to the test; a kill would orphan it.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("benchmark: %w: %s", err, strings.TrimSpace(out.String()))
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var f struct {
		Value, ZstdTar, Ratio, SkipDiffID, RatioSkipDiffID float64
		Bytes, Compressed                                  int64
		Files                                              int
	}
	// Several lines when the benchmark calibrates itself: the last counts.
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("benchmark's figures: %w", err)
		}
	}
	if f.ZstdTar <= 0 {
		return fmt.Errorf("benchmark's figures %.200q: %w", text, dsas.ErrInvalid)
	}
	b.report.add(
		// As a node does it: the digest of the compressed bytes fixes the tar.
		figure("unpack", f.RatioSkipDiffID, "×", "of zstd -dc | tar x: %.2f s against %.2f s, medians in turn, into tmpfs; %d MiB in %d files, %d MiB compressed", f.SkipDiffID, f.ZstdTar, f.Bytes/mib, f.Files, f.Compressed/mib).atMost(0.6),
		figure("unpack, two digests", f.Ratio, "×", "%.2f s; with the digest of the tar inside checked too", f.Value),
	)
	return nil
}
