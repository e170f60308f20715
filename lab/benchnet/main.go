// Command benchnet measures the boot server's protocols beside the programs a
// user could run instead, in the same run and on the same wire: two network
// namespaces joined by a veth pair, servers on one core, clients on the other.
// Contenders take turns, and each figure is the median of its turns. It reports
// and never asserts: a missed aim is a word in the table. Run it by
//
//	make bench-net
//
// It wants root. Everything stays in namespaces of its own.
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
		fmt.Fprintln(os.Stderr, "benchnet:", err)
		os.Exit(1)
	}
}

// part is a protocol's measurements: one file, one name for -only. measure adds
// its rows to the report through b.contest, or b.report.add for what has no
// contenders.
type part struct {
	name    string
	measure func(ctx context.Context, b *bench) error
}

// parts are measured in this order.
func parts() []part {
	return []part{
		{"dhcp", measureDHCP},
		{"tftp", measureTFTP},
		{"http", measureHTTP},
		{"storm", measureStorm},
	}
}

func partNames() (names []string) {
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("benchnet", flag.ContinueOnError)
	fs.SetOutput(stderr)
	only := fs.String("only", strings.Join(partNames(), ","), "what to measure, separated by commas")
	rows := fs.String("rows", "", "measure only rows whose name contains this")
	quick := fs.Bool("quick", false, "one turn of smaller work: to see that it runs, not for figures")
	runs := fs.Int("runs", 3, "turns of each contender; the figure is their median")
	who := fs.String("who", "", "measure only contenders whose name contains one of these, separated by commas")
	scratch := fs.String("dir", "", "folder for the servers' state (default build/bench-net; on tmpfs, what the disk costs is left out)")
	profile := fs.String("profile", "", "folder for processor profiles of our server, one per row")
	child := fs.String("child", "", "internal: be one of the servers that are measured")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if *child != "" {
		return runChild(ctx, *child, *profile, fs.Args())
	}
	wanted := strings.Split(*only, ",")
	for _, w := range wanted {
		if !slices.Contains(partNames(), w) {
			return fmt.Errorf("-only %s: there are %s: %w", w, strings.Join(partNames(), ", "), dsas.ErrInvalid)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces want root (sudo make bench-net): %w", dsas.ErrDenied)
	}
	root, err := figures.FindRoot("bench-net")
	if err != nil {
		return err
	}
	b := &bench{root: root, scratch: *scratch, rows: *rows, who: *who, quick: *quick, runs: max(*runs, 1), profile: *profile, progress: stderr}
	if b.quick {
		b.runs = 1
	}
	if _, err := os.Stat(b.bin()); err != nil {
		return fmt.Errorf("%s: %w (build it with: make build)", b.bin(), dsas.ErrNotFound)
	}
	if b.scratch == "" {
		b.scratch = filepath.Join(root, "build", "bench-net")
	}
	// The measuring side keeps to one core, the servers have the other.
	if err := pinSelf(clientCore); err != nil {
		return err
	}
	b.report.Machine = figures.DescribeMachine(ctx, root)
	err = b.measure(ctx, wanted)
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted; nothing written: %w", ctx.Err())
	}
	b.report.Machine.LoadAfter = figures.LoadAverage()
	if writeErr := b.report.writeTable(stdout); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	name := os.Getenv("DSAS_BENCHNET_JSON")
	if name == "" {
		name = filepath.Join(root, "build", "bench-net.json")
	}
	if writeErr := figures.WriteJSON(name, b.report); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	fmt.Fprintf(stderr, "benchnet: figures are in %s\n", name)
	return err
}

// bench is one run.
type bench struct {
	root     string // of the checkout
	scratch  string // where servers keep their state
	rows     string // part of the names of the rows that are wanted
	who      string // parts of the names of the contenders that are wanted
	quick    bool
	runs     int
	profile  string // folder; "" for no profiles
	progress io.Writer
	report   report
}

func (b *bench) say(format string, a ...any) {
	fmt.Fprintf(b.progress, "benchnet: "+format+"\n", a...)
}

func (b *bench) bin() string { return filepath.Join(b.root, "bin", "dsas") }

// scaled gives full, or quick under -quick.
func (b *bench) scaled(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

// measure measures the wanted parts. One that cannot be measured leaves a row
// that says so, and the others go on.
func (b *bench) measure(ctx context.Context, wanted []string) error {
	var errs []error
	for _, p := range parts() {
		if !slices.Contains(wanted, p.name) || ctx.Err() != nil {
			continue
		}
		begin := time.Now()
		b.say("%s ...", p.name)
		if err := p.measure(ctx, b); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			b.report.add(row{Name: p.name, Note: "not measured: " + firstLine(err.Error())})
			continue
		}
		b.say("%s took %s", p.name, time.Since(begin).Round(time.Second))
	}
	return errors.Join(errs...)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
