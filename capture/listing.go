package capture

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"dsas"
	"dsas/internal/xattr"
)

// ListCommand prints a node's root file system for ReadListing: it is a line for
// a POSIX shell, and needs GNU find, which every Debian has. What no image holds
// is not walked. Fields end in NUL, which no name has: type, mode (octal), owner,
// group, size, time of change of the content, device, path, link target.
const ListCommand = `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \) -prune -o -printf '%y\0%m\0%U\0%G\0%s\0%T@\0%D\0%P\0%l\0'`

// SumCommand prints the digests of the files whose names it gets on its input,
// each ended by NUL and relative to the root, for ReadSums. A file that is gone
// meanwhile has none.
const SumCommand = `cd / && xargs -0 -r sha256sum -z -- 2>/dev/null || true`

// PackCommand writes a tar of the files whose names it gets like SumCommand, for
// ReadContents.
const PackCommand = `tar -C / --no-recursion --hard-dereference --null --verbatim-files-from -cf - -T -`

// AttrsCommand prints the extended attributes of a node's files for ReadAttrs. No
// essential program of Debian does that but Perl, which can make a system call
// by its number (here x86_64's and arm64's llistxattr and lgetxattr). Fields end
// in NUL: path, attribute, value in hex. Without a path, an attribute that the
// root's file system cannot hold; all empty: the end. Nothing is printed where
// there is no such Perl.
const AttrsCommand = `cd / && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \) -prune -o -printf '%P\0' | perl -we '
use strict; use Config;
my ($list, $get) = $Config{archname} =~ /^x86_64-linux-gnu(?!x32)/ ? (195, 192) : $Config{archname} =~ /^aarch64-linux-gnu/ ? (12, 9) : exit;
my $buf = "\0" x 65536;
$/ = "\0";
while (defined(my $name = <STDIN>)) {
	chomp $name;
	my $file = $name eq "" ? "." : "./$name";
	if ($name eq "") {
		for (qw(security.capability system.posix_acl_access user.dsas)) {
			my $attr = $_;
			print "\0$attr\0\0" if syscall($get, $file, $attr, $buf, 65536) < 0 && $! == 95;
		}
		next;
	}
	my $n = syscall($list, $file, $buf, 65536);
	next if $n <= 0;
	for (split /\0/, substr($buf, 0, $n)) {
		my $attr = $_;
		next unless $attr =~ /^(security[.]capability$|system[.]posix_acl_|user[.])/;
		my $len = syscall($get, $file, $attr, $buf, 65536);
		print "$name\0$attr\0", unpack("H*", substr($buf, 0, $len)), "\0" if $len >= 0;
	}
}
print "\0\0\0";
' 2>/dev/null || true`

const listFields = 9

// mounted is the type of an entry that lies on another device than the root: a
// disk's. Nothing is known of what the disk hides.
const mounted = 'm'

// ReadListing reads what ListCommand printed.
func ReadListing(r io.Reader) (Tree, error) {
	t := Tree{}
	br := bufio.NewReaderSize(&bounded{r: r, left: maxListing}, 1<<20)
	var f [listFields]string
	rootDevice := ""
	for n := 0; ; n++ {
		for i := range f {
			s, err := br.ReadString(0)
			if errors.Is(err, io.EOF) && i == 0 && s == "" {
				if rootDevice == "" {
					return nil, fmt.Errorf("the node's list of files is empty: %w", dsas.ErrInvalid)
				}
				return t, t.consistent()
			}
			if errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("the node's list of files ends in the middle of entry %d: %w", n+1, dsas.ErrInvalid)
			}
			if err != nil {
				return nil, fmt.Errorf("the node's list of files: %w", err)
			}
			if len(s) > maxPath+1 {
				return nil, fmt.Errorf("the node's list of files, entry %d: a field of %d bytes: %w", n+1, len(s), dsas.ErrInvalid)
			}
			f[i] = s[:len(s)-1]
		}
		if n == 0 {
			if f[7] != "" || f[0] != "d" {
				return nil, fmt.Errorf("the node's list of files does not begin with its root: %w", dsas.ErrInvalid)
			}
			rootDevice = f[6]
			continue
		}
		if n > maxEntries {
			return nil, fmt.Errorf("the node has more than %d files: %w", maxEntries, dsas.ErrInvalid)
		}
		e, err := parseEntry(f)
		if err != nil {
			return nil, fmt.Errorf("the node's list of files, entry %d: %w", n+1, err)
		}
		if f[6] != rootDevice {
			e = Entry{Type: mounted}
		}
		if _, twice := t[f[7]]; twice {
			return nil, fmt.Errorf("the node's list of files has %.200q twice: %w", f[7], dsas.ErrInvalid)
		}
		t[f[7]] = e
	}
}

func parseEntry(f [listFields]string) (Entry, error) {
	var e Entry
	if len(f[0]) != 1 || !strings.Contains("fdlpsbcD", f[0]) {
		return e, fmt.Errorf("type %.20q: %w", f[0], dsas.ErrInvalid)
	}
	if !fs.ValidPath(f[7]) || f[7] == "." {
		return e, fmt.Errorf("path %.200q: %w", f[7], dsas.ErrInvalid)
	}
	mode, err := strconv.ParseUint(f[1], 8, 32)
	if err != nil || mode > emptyPerm {
		return e, fmt.Errorf("%.200q: mode %.20q: %w", f[7], f[1], dsas.ErrInvalid)
	}
	var nums [3]int64
	for i, s := range f[2:5] {
		if nums[i], err = strconv.ParseInt(s, 10, 64); err != nil || nums[i] < 0 {
			return e, fmt.Errorf("%.200q: owner or size %.20q: %w", f[7], s, dsas.ErrInvalid)
		}
	}
	seconds, _, _ := strings.Cut(f[5], ".")
	e = Entry{Type: f[0][0], Mode: uint32(mode), UID: int(nums[0]), GID: int(nums[1]), Size: nums[2]}
	if e.MTime, err = strconv.ParseInt(seconds, 10, 64); err != nil {
		return e, fmt.Errorf("%.200q: time %.30q: %w", f[7], f[5], dsas.ErrInvalid)
	}
	if e.Type == 'l' {
		e.Link = f[8]
	}
	if e.Type != 'f' {
		e.Size = 0
	}
	return e, nil
}

// consistent wants every parent that is listed to be a folder, as in any file
// system: who lists a link and something below it wants to be followed.
func (t Tree) consistent() error {
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if up, ok := t[dir]; ok && up.Type != 'd' && up.Type != mounted {
				return fmt.Errorf("the node lists %.200q below %.200q, which is no folder: %w", name, dir, dsas.ErrInvalid)
			}
		}
	}
	return nil
}

// ReadSums puts what SumCommand printed into the tree. Names that are not among
// asked are an error.
func (t Tree) ReadSums(r io.Reader, asked []string) error {
	want := map[string]bool{}
	for _, name := range asked {
		want[name] = true
	}
	br := bufio.NewReaderSize(&bounded{r: r, left: maxListing}, 64<<10)
	for {
		s, err := br.ReadString(0)
		if errors.Is(err, io.EOF) && s == "" {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the node's digests: %w", err)
		}
		sum, name, ok := strings.Cut(strings.TrimSuffix(s, "\x00"), "  ")
		if _, derr := dsas.ParseDigest("sha256:" + sum); derr != nil || !ok || !want[name] {
			return fmt.Errorf("the node's digests: %.200q was not asked for: %w", s, dsas.ErrInvalid)
		}
		e := t[name]
		e.Sum = sum
		t[name] = e
	}
}

// ReadAttrs puts what AttrsCommand printed into the tree, and gives the classes of
// attributes that cannot be compared, for Rules.Unheld: what the node's file
// system cannot hold, or all of them where the node has nothing to tell them by
// (told is false then).
func (t Tree) ReadAttrs(r io.Reader) (unheld []string, told bool, err error) {
	fail := func(err error) ([]string, bool, error) {
		return nil, false, fmt.Errorf("the node's extended attributes: %w", err)
	}
	br := bufio.NewReaderSize(&bounded{r: r, left: maxListing}, 256<<10)
	attrs := map[string]map[string]string{}
	for first := true; ; first = false {
		var f [3]string
		for i := range f {
			s, err := br.ReadString(0)
			if errors.Is(err, io.EOF) && first && i == 0 && s == "" {
				return xattr.Classes, false, nil
			}
			if errors.Is(err, io.EOF) {
				return fail(fmt.Errorf("they end in the middle: %w", dsas.ErrInvalid))
			}
			if err != nil {
				return fail(err)
			}
			if len(s) > max(maxPath, 2*xattr.MaxValue)+1 {
				return fail(fmt.Errorf("a field of %d bytes: %w", len(s), dsas.ErrInvalid))
			}
			f[i] = s[:len(s)-1]
		}
		name, attr := f[0], f[1]
		if f == [3]string{} {
			break
		}
		class := xattr.Class(attr)
		if name == "" && class != "" && f[2] == "" {
			unheld = append(unheld, class)
			continue
		}
		value, err := hex.DecodeString(f[2])
		if err != nil || name == "" {
			return fail(fmt.Errorf("%.200q of %.200q: %w", attr, name, dsas.ErrInvalid))
		}
		e, ok := t[name]
		if !ok || e.Type == mounted || class == "" {
			continue // made since the list, a disk's, or overlayfs's own
		}
		if attrs[name] == nil {
			attrs[name] = map[string]string{}
		}
		attrs[name][attr] = string(value)
	}
	for name, values := range attrs {
		e := t[name]
		e.Attrs = xattr.Of(values)
		t[name] = e
	}
	return unheld, true, nil
}

// Names writes names as the commands read them.
func Names(names []string) io.Reader {
	var b bytes.Buffer
	for _, n := range names {
		b.WriteString(n)
		b.WriteByte(0)
	}
	return &b
}

// bounded gives an error, and not the end, after so many bytes.
type bounded struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("more than was announced or may be: %w", dsas.ErrInvalid)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}
