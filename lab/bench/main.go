// Command bench measures what the project promises of itself: sizes, the time
// of each phase of a boot, the server's memory, an image build that changes
// nothing, unpacking beside the usual tools, and the demonstration rack's
// second start. It reports and never asserts: an aim that is missed is a word
// in the table, not an exit status. Run it by
//
//	make bench
//	make bench-image   builds, sizes and unpacking beside Debian's own tools
//
// It boots three QEMU nodes in a rack of its own (package lab) and wants root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dsas"
	"dsas/lab/figures"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parts are what may be measured alone, in the order they are measured:
// nothing else of ours runs beside any of them.
var parts = []string{"images", "unpack", "boots", "run"}

// imagePart is measured when it is asked for alone: it builds all anew.
const imagePart = "image"

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 1 && args[0] == unpackChildArg {
		return unpackChild(ctx, os.Stdin, stdout)
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	only := fs.String("only", strings.Join(parts, ","), "what to measure, separated by commas; image, which builds a role from nothing, when it is named")
	first := fs.Duration("first-run", 0, "what make run took from a fresh clone to three ready nodes, to be noted in the table")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	wanted := strings.Split(*only, ",")
	for _, w := range wanted {
		if !slices.Contains(parts, w) && w != imagePart {
			return fmt.Errorf("-only %s: there are %s, %s: %w", w, strings.Join(parts, ", "), imagePart, dsas.ErrInvalid)
		}
	}
	root, err := figures.FindRoot("bench")
	if err != nil {
		return err
	}
	// Ctrl-C goes to everything in the foreground; ours is to clean up.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	b := &bench{root: root, state: filepath.Join(root, "build", "bench"), progress: stderr, firstRun: *first}
	b.report.Machine = figures.DescribeMachine(ctx, root)
	err = b.measure(ctx, wanted)
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted; nothing written: %w", ctx.Err())
	}
	b.report.Machine.LoadAfter = figures.LoadAverage()
	if writeErr := b.report.writeTable(stdout); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	name := os.Getenv("DSAS_BENCH_JSON")
	if name == "" {
		name = filepath.Join(root, "build", "bench.json")
	}
	if writeErr := figures.WriteJSON(name, b.report); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	fmt.Fprintf(stderr, "bench: figures are in %s\n", name)
	return err
}

// bench is one run.
type bench struct {
	root     string // of the checkout
	state    string // of the server that is measured, with its images
	progress io.Writer
	firstRun time.Duration
	report   report
}

func (b *bench) say(format string, a ...any) {
	fmt.Fprintf(b.progress, "bench: "+format+"\n", a...)
}

func (b *bench) bin() string { return filepath.Join(b.root, "bin", "dsas") }

// measure measures the wanted parts. One that cannot be measured leaves a row
// that says so, and the others go on.
func (b *bench) measure(ctx context.Context, wanted []string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces and image builds want root (sudo make bench): %w", dsas.ErrDenied)
	}
	if _, err := os.Stat(b.bin()); err != nil {
		return fmt.Errorf("%s: %w (build it with: make build)", b.bin(), dsas.ErrNotFound)
	}
	var errs []error
	do := func(part string, fn func(context.Context) error) {
		if !slices.Contains(wanted, part) || ctx.Err() != nil {
			return
		}
		begin := time.Now()
		b.say("%s ...", part)
		if err := fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part, err))
			b.report.add(row{Name: part, Note: "not measured: " + firstLine(err.Error())})
			return
		}
		b.say("%s took %s", part, time.Since(begin).Round(time.Second))
	}
	do(imagePart, b.imageBench)
	do("images", b.images)
	do("unpack", b.unpack)
	do("boots", b.boots)
	do("run", b.demo)
	return errors.Join(errs...)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
