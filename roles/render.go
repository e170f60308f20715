package roles

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"dsas"
)

// Render makes a node's files: /etc/hostname, /etc/hosts, /etc/resolv.conf and
// the role's templates, in this order; a template with the path of a standard
// file takes its place. dsas.conf is Conf's.
func Render(def Definition, in Input) ([]dsas.File, error) {
	files, err := render(def, in)
	if err != nil {
		return nil, fmt.Errorf("render files of node %s, role %s: %w", in.Node.Name, def.Role.Name, err)
	}
	return files, nil
}

func render(def Definition, in Input) ([]dsas.File, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	files := []dsas.File{
		{Path: "/etc/hostname", Mode: 0o644, Content: []byte(in.Node.Name + "\n")},
		{Path: "/etc/hosts", Mode: 0o644, Content: hosts(in)},
		{Path: "/etc/resolv.conf", Mode: 0o644, Content: resolvConf(in)},
	}
	for _, t := range def.Role.Templates {
		text, err := readText(def.FS, path.Join("templates", t.Source))
		if err != nil {
			return nil, err
		}
		content, err := execute(t.Source, text, in)
		if err != nil {
			return nil, err
		}
		mode, err := parseMode(t.Mode)
		if err != nil {
			return nil, fmt.Errorf("template %s: %w", t.Source, err)
		}
		f := dsas.File{Path: t.Path, Mode: mode, Content: content, Service: t.Service}
		if i := slices.IndexFunc(files, func(o dsas.File) bool { return o.Path == f.Path }); i >= 0 {
			files[i] = f
		} else {
			files = append(files, f)
		}
	}
	return files, nil
}

// hosts knows the node itself and the nodes it was told of. The node's own
// name is on its own address, not on 127.0.1.1: services bind to it.
func hosts(in Input) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	line := func(p Peer) {
		if in.Subnet.Domain != "" {
			fmt.Fprintf(&b, "%s %s.%s %s\n", p.Address, p.Name, in.Subnet.Domain, p.Name)
		} else {
			fmt.Fprintf(&b, "%s %s\n", p.Address, p.Name)
		}
	}
	line(Peer{Name: in.Node.Name, Address: in.Node.Address.Addr()})
	others := slices.SortedFunc(slices.Values(in.Nodes), byName)
	for _, p := range slices.CompactFunc(others, func(a, b Peer) bool { return a.Name == b.Name }) {
		if p.Name != in.Node.Name && p.Address.IsValid() {
			line(p)
		}
	}
	return b.Bytes()
}

// resolvConf names at most three servers: the resolver reads no more
// (resolv.conf(5), MAXNS).
func resolvConf(in Input) []byte {
	var b bytes.Buffer
	b.WriteString("# Written by dsas from the subnet's settings.\n")
	if in.Subnet.Domain != "" {
		fmt.Fprintf(&b, "search %s\n", in.Subnet.Domain)
	}
	for i, a := range in.Subnet.DNS {
		if i < 3 {
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
	}
	if len(in.Subnet.DNS) > 0 {
		b.WriteString("options timeout:2 attempts:2\n")
	}
	return b.Bytes()
}

// funcs are what templates may call beside text/template's own.
func funcs() template.FuncMap {
	return template.FuncMap{
		"quote": quote,        // one shell word
		"join":  strings.Join, // join LIST SEPARATOR
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"add":   func(a, b int) int { return a + b },
	}
}

func parseTemplate(name string, text []byte) (*template.Template, error) {
	t, err := template.New(name).Funcs(funcs()).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, dsas.ErrInvalid)
	}
	return t, nil
}

// execute renders one template. The node's power credentials are no template's
// business: they would travel the boot network.
func execute(name string, text []byte, in Input) ([]byte, error) {
	t, err := parseTemplate(name, text)
	if err != nil {
		return nil, err
	}
	in.Node.BMC = nil
	w := &boundedBuffer{}
	if err := t.Execute(w, in); err != nil {
		return nil, fmt.Errorf("%w: %w", err, dsas.ErrInvalid)
	}
	return w.Bytes(), nil
}

type boundedBuffer struct{ bytes.Buffer }

var errTooLong = errors.New("the rendered file is longer than 4 MiB")

// Write implements io.Writer; it hides ReadFrom and the like of bytes.Buffer
// from text/template, which only writes.
func (w *boundedBuffer) Write(p []byte) (int, error) {
	if w.Len()+len(p) > maxText {
		return 0, errTooLong
	}
	return w.Buffer.Write(p)
}

// parseMode reads "0644"; empty is 0644. No set-id bits: a rendered file's
// content comes from a database.
func parseMode(s string) (uint32, error) {
	if s == "" {
		return 0o644, nil
	}
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m > 0o777 {
		return 0, fmt.Errorf("mode %q: write it in octal, as \"0644\", at most 0777: %w", s, dsas.ErrInvalid)
	}
	return uint32(m), nil
}
