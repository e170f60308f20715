package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"dsas"
)

// imageRole is the role that the part "image" builds: a copy of its own, whose
// files and packages it changes.
const imageRole = "bench"

const imageRoleYAML = `name: bench
description: what make bench-image builds
packages: [nginx-light%s]
memory: 384MiB
`

// imageBench measures builds of one role from nothing and after changes, what
// they make, and how it is unpacked, beside what Debian has for each.
func (b *bench) imageBench(ctx context.Context) error {
	state := filepath.Join(b.root, "build", "bench-image")
	if err := os.RemoveAll(state); err != nil {
		return err
	}
	r := &roleBuild{bench: b, state: state, folder: filepath.Join(state, "roles", imageRole)}
	if err := r.define("", "one\n"); err != nil {
		return err
	}
	b.say("building from nothing ...")
	first, err := r.build(ctx)
	if err != nil {
		return err
	}
	var again []float64
	for range 5 {
		run, err := r.build(ctx)
		if err != nil {
			return err
		}
		again = append(again, run.took.Seconds())
	}
	change := func(packages, file string) (roleRun, error) {
		if err := r.define(packages, file); err != nil {
			return roleRun{}, err
		}
		return r.build(ctx)
	}
	file, err := change("", "two\n")
	if err != nil {
		return err
	}
	b.say("building with one more package ...")
	pkg, err := change(", tree", "two\n")
	if err != nil {
		return err
	}
	b.report.add(
		figure("build, nothing changed", median(again), "s", "median of %d", len(again)).atMost(0.5),
		figure("build, one file", file.took.Seconds(), "s", "%s", file.changed(first)).atMost(3),
		figure("build, one package", pkg.took.Seconds(), "s", "%s; the package fetched too", pkg.changed(file)),
	)
	return b.imagePeers(ctx, state, first, pkg)
}

// roleBuild builds imageRole in a state folder of its own.
type roleBuild struct {
	*bench
	state, folder string
}

// define writes the role's definition.
func (r *roleBuild) define(packages, content string) error {
	for name, text := range map[string]string{
		filepath.Join(r.folder, "role.yaml"):             fmt.Sprintf(imageRoleYAML, packages),
		filepath.Join(r.folder, "files", "etc", "bench"): content,
		filepath.Join(r.state, "build.yaml"):             fmt.Sprintf("state: %s\nroles: %s\n", r.state, filepath.Dir(r.folder)),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// roleRun is one run of dsas image build.
type roleRun struct {
	took time.Duration
	// role is the part of it after kernel and initramfs; 0: it did not say
	// when it began to install.
	role     time.Duration
	manifest dsas.Manifest
}

// changed tells the parts that are not in an earlier run's image.
func (r roleRun) changed(before roleRun) string {
	had := map[dsas.Digest]bool{}
	for _, p := range before.manifest.Parts {
		had[p.DiffID] = true
	}
	var names []string
	for _, p := range r.manifest.Parts {
		if !had[p.DiffID] {
			names = append(names, fmt.Sprintf("%s (%.1f MiB)", p.Title, float64(p.Size)/mib))
		}
	}
	return fmt.Sprintf("new of %d layers: %s", len(r.manifest.Parts), strings.Join(names, ", "))
}

func (r *roleBuild) build(ctx context.Context) (roleRun, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, r.bin(), "--json", "image", "build", "--config", filepath.Join(r.state, "build.yaml"), imageRole)
	cmd.Stdout = &out
	lines, err := cmd.StderrPipe()
	if err != nil {
		return roleRun{}, err
	}
	own(cmd)
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return roleRun{}, fmt.Errorf("dsas image build: %w", err)
	}
	var said []byte
	var installing time.Time
	for s := bufio.NewScanner(lines); s.Scan(); {
		if installing.IsZero() && strings.Contains(s.Text(), "base system") {
			installing = time.Now()
		}
		said = append(append(said, s.Bytes()...), '\n')
	}
	if err := cmd.Wait(); err != nil {
		return roleRun{}, fmt.Errorf("dsas image build: %w: %s", err, lastLines(said, 5))
	}
	run := roleRun{took: time.Since(begin)}
	if !installing.IsZero() {
		run.role = time.Since(installing)
	}
	var made builtImages
	if err := json.Unmarshal(out.Bytes(), &made); err != nil {
		return roleRun{}, fmt.Errorf("dsas image build: its answer: %w", err)
	}
	if len(made.Releases) != 1 {
		return roleRun{}, fmt.Errorf("dsas image build made %d releases: %w", len(made.Releases), dsas.ErrInvalid)
	}
	run.manifest = made.Releases[0].Manifest
	return run, nil
}
