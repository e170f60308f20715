package imagebuild

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"dsas"
)

// servicePath is the PATH that services get on a node.
var servicePath = []string{"usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"}

// RunMissing is the rule that a service without a run file breaks.
const RunMissing = "run-missing"

// madeOnNode are folders whose content is not in an image.
var madeOnNode = []string{"/run", "/tmp", "/proc", "/sys", "/dev", "/var/run"}

// checkServices tells of services that could not start: their scripts must be
// executable, their interpreters be in the tree, and the commands that they
// name plainly and end in (exec) too. A command that is made of variables, or
// that only comes to be on the node, is believed.
func checkServices(role dsas.Role, files roleFiles, tree *merged) []Finding {
	c := &serviceChecker{role: role, tree: tree}
	for _, s := range role.Services {
		dir := path.Join("etc/dsas/services", s.Name)
		if !slices.ContainsFunc(files, func(f roleFile) bool { return f.Path == dir+"/run" }) {
			c.bad("services/"+s.Name+"/run", 0, RunMissing, "service "+s.Name+" has no run", "write a script that ends in exec of the program in the foreground")
		}
	}
	for _, f := range files {
		rel, ok := strings.CutPrefix(f.Path, "etc/dsas/services/")
		if !ok || !slices.Contains([]string{"run", "finish", "check"}, path.Base(rel)) {
			continue
		}
		c.script("services/"+rel, path.Join("/etc/dsas/services", path.Dir(rel)), f)
	}
	return c.found
}

type serviceChecker struct {
	role  dsas.Role
	tree  *merged
	found []Finding
}

func (c *serviceChecker) bad(p string, line int, rule, reason, way string) {
	c.found = append(c.found, Finding{Path: p, Line: line, Rule: rule, Reason: reason, Way: way})
}

// script checks one of a service's programs; dir is the folder it runs in.
func (c *serviceChecker) script(source, dir string, f roleFile) {
	if f.Link != "" {
		if kind, ok := c.tree.resolve("/" + f.Path); !ok || kind != "x" {
			c.bad(source, 0, "command-missing", "it is a link to "+f.Link+", which is no program in the image", "name the package that has it")
		}
		return
	}
	if f.Mode&0o111 == 0 {
		c.bad(source, 0, "not-executable", "it is not executable", "chmod +x")
		return
	}
	if bytes.HasPrefix(f.Data, []byte("\x7fELF")) {
		return
	}
	first, _, _ := bytes.Cut(f.Data, []byte("\n"))
	line, ok := strings.CutPrefix(string(first), "#!")
	if !ok {
		c.bad(source, 1, "interpreter-missing", "it has no #! line: the kernel cannot start it (ENOEXEC)", "begin it with #!/bin/sh")
		return
	}
	words := strings.Fields(line)
	if len(words) == 0 || !path.IsAbs(words[0]) {
		c.bad(source, 1, "interpreter-missing", "its #! line names no absolute path", "begin it with #!/bin/sh")
		return
	}
	if !c.exists(words[0], dir) {
		c.bad(source, 1, "interpreter-missing", "its interpreter "+words[0]+" is not in the image", "add the package that has it to packages: in role.yaml")
		return
	}
	interpreter := path.Base(words[0])
	if interpreter == "env" && len(words) > 1 && !strings.HasPrefix(words[1], "-") {
		interpreter = words[1]
		if !c.exists(interpreter, dir) {
			c.bad(source, 1, "interpreter-missing", "its interpreter "+interpreter+" is not in the image", "add the package that has it to packages: in role.yaml")
			return
		}
	}
	switch interpreter {
	case "sh", "dash":
		c.shell(source, dir, f.Data, syntax.LangPOSIX)
	case "bash":
		c.shell(source, dir, f.Data, syntax.LangBash)
	}
}

// shell looks at what a script execs. What cannot be parsed is left to the
// shell itself.
func (c *serviceChecker) shell(source, dir string, text []byte, lang syntax.LangVariant) {
	file, err := syntax.NewParser(syntax.Variant(lang)).Parse(bytes.NewReader(text), source)
	if err != nil {
		return
	}
	own := map[string]bool{} // functions, and what the script asks for before it runs it
	ownPath := false
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.FuncDecl:
			own[n.Name.Value] = true
		case *syntax.Assign:
			ownPath = ownPath || n.Name != nil && n.Name.Value == "PATH"
		case *syntax.CallExpr:
			if len(n.Args) > 1 && slices.Contains([]string{"command", "type", "which", "hash", "[", "test"}, n.Args[0].Lit()) {
				for _, w := range n.Args[1:] {
					own[literal(w)] = true
				}
			}
		}
		return true
	})
	syntax.Walk(file, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok || len(call.Args) < 2 || call.Args[0].Lit() != "exec" {
			return true
		}
		name := literal(call.Args[1])
		if name == "" || strings.HasPrefix(name, "-") || own[name] || ownPath && !strings.Contains(name, "/") {
			return true
		}
		if !c.exists(name, dir) {
			c.bad(source, int(call.Args[1].Pos().Line()), "command-missing", fmt.Sprintf("it ends in %s, which is not in the image", name),
				"add the package that has it to packages: in role.yaml, or the file to files/")
		}
		return true
	})
}

// literal gives a word whose text does not depend on anything, else "".
func literal(w *syntax.Word) string {
	var b strings.Builder
	for _, p := range w.Parts {
		switch p := p.(type) {
		case *syntax.Lit:
			if strings.ContainsAny(p.Value, "*?[\\~") {
				return ""
			}
			b.WriteString(p.Value)
		case *syntax.SglQuoted:
			if p.Dollar {
				return ""
			}
			b.WriteString(p.Value)
		case *syntax.DblQuoted:
			for _, q := range p.Parts {
				lit, ok := q.(*syntax.Lit)
				if !ok || strings.Contains(lit.Value, "\\") {
					return ""
				}
				b.WriteString(lit.Value)
			}
		default:
			return ""
		}
	}
	return b.String()
}

// exists tells whether a program is in the tree, or may come to be on the node.
func (c *serviceChecker) exists(name, dir string) bool {
	if !strings.Contains(name, "/") {
		return slices.ContainsFunc(servicePath, func(d string) bool {
			kind, ok := c.tree.resolve(path.Join(d, name))
			return ok && kind == "x"
		})
	}
	if !path.IsAbs(name) {
		name = path.Join(dir, name)
	}
	name = path.Clean(name)
	for _, d := range madeOnNode {
		if strings.HasPrefix(name, d+"/") {
			return true
		}
	}
	for _, d := range c.role.Devices {
		if d.Mount != "" && strings.HasPrefix(name, d.Mount+"/") {
			return true
		}
	}
	if slices.ContainsFunc(c.role.Templates, func(t dsas.Template) bool { return t.Path == name }) {
		return true
	}
	kind, ok := c.tree.resolve(name)
	return ok && kind == "x"
}
