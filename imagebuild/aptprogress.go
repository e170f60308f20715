package imagebuild

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// statusFD is the descriptor on which apt tells how far it is: the first of a
// child's further files.
const statusFD = "APT::Status-Fd=3"

// runApt is runAll for a program that passes statusFD to apt. Call it before
// isolate, so that the descriptor is the first.
func runApt(opt *Options, cmd *exec.Cmd) (run func() error, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = append([]*os.File{w}, cmd.ExtraFiles...)
	return func() error {
		read := make(chan struct{})
		go func() {
			defer close(read)
			aptStatus(r, opt.fraction)
		}()
		err := runAll(cmd)
		w.Close() // ours; with the last one in apt the reader ends
		r.Close() // a daemon that a package started may hold it
		<-read
		return err
	}, nil
}

// aptStatus reads "dlstatus:ITEM:PERCENT:TEXT" and "pmstatus:PACKAGE:PERCENT:TEXT"
// (apt's README.progress-reporting).
func aptStatus(r io.Reader, fraction func(done, total int64)) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.SplitN(lines.Text(), ":", 4)
		if len(f) < 3 || f[0] != "dlstatus" && f[0] != "pmstatus" {
			continue
		}
		// A package's name may carry its architecture: "libc6:amd64".
		p := f[2]
		if _, err := strconv.ParseFloat(p, 64); err != nil && len(f) == 4 {
			p, _, _ = strings.Cut(f[3], ":")
		}
		if percent, err := strconv.ParseFloat(p, 64); err == nil {
			fraction(int64(percent*10), 1000)
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line too long: apt must not wait for us
}
