package dsasconf

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// variable is a shell variable: a string, or an array with holes.
type variable struct {
	array bool
	elems map[int]string // a string is element 0, as in bash
	lines map[int]int    // where each element was set
}

func (v *variable) indexes() []int { return slices.Sorted(maps.Keys(v.elems)) }

// shell holds the variables set so far. It expands words and runs nothing.
type shell struct {
	vars map[string]*variable
}

func newShell() *shell { return &shell{vars: map[string]*variable{}} }

// Get implements expand.Environ.
func (s *shell) Get(name string) expand.Variable {
	// The library asks this way for a user's home ("~name"), and would look
	// into /etc/passwd when told nothing: leave such words as they stand.
	if user, ok := strings.CutPrefix(name, "HOME "); ok {
		return expand.Variable{Set: true, Kind: expand.String, Str: "~" + user}
	}
	v := s.vars[name]
	if v == nil {
		if name == "HOME" {
			return expand.Variable{Set: true, Kind: expand.String, Str: "~"}
		}
		return expand.Variable{}
	}
	if !v.array {
		return expand.Variable{Set: true, Kind: expand.String, Str: v.elems[0]}
	}
	out := expand.Variable{Set: true, Kind: expand.Indexed, Indexes: v.indexes()}
	for _, i := range out.Indexes {
		out.List = append(out.List, v.elems[i])
	}
	return out
}

// Each implements expand.Environ.
func (s *shell) Each(fn func(string, expand.Variable) bool) {
	for _, name := range slices.Sorted(maps.Keys(s.vars)) {
		if !fn(name, s.Get(name)) {
			return
		}
	}
}

func (s *shell) config() *expand.Config {
	// NoUnset: bash would put nothing for a variable that is not set, and
	// "arp_ip_target=$LVSADDRESS,$LLSADDRESS" would go wrong in the kernel.
	return &expand.Config{Env: s, NoUnset: true}
}

// run applies one statement; offset is what to add to its line numbers.
// broken means that the statement cannot be trusted to end where it seems to,
// so that reading goes on at its second line.
func (s *shell) run(st *syntax.Stmt, offset int) (errs []LineError, broken bool) {
	line := func(p syntax.Pos) int { return int(p.Line()) + offset }
	defer func() {
		if r := recover(); r != nil {
			errs = append(errs, LineError{Line: line(st.Pos()), Reason: fmt.Sprintf("the shell expander gave up: %v", r)})
		}
	}()
	refuse := func(reason string) ([]LineError, bool) {
		return []LineError{{Line: line(st.Pos()), Reason: reason}}, false
	}
	if len(st.Redirs) > 0 || st.Negated || st.Background || st.Coprocess || st.Disown {
		return refuse("commands are not run here, and neither are redirections; write KEY=value")
	}
	var assigns []*syntax.Assign
	switch cmd := st.Cmd.(type) {
	case *syntax.CallExpr:
		if len(cmd.Args) > 0 {
			if st.End().Line() > st.Pos().Line() {
				errs, _ := refuse("this runs over the end of the line, into what looks like a command; is a quote missing?")
				return errs, true
			}
			word := cmd.Args[0].Lit()
			if len(cmd.Assigns) > 0 {
				return refuse(fmt.Sprintf("a command (%.40s) follows the assignment, and commands are not run here; put quotes around a value that holds a blank", word))
			}
			if len(cmd.Args) > 1 && strings.HasPrefix(cmd.Args[1].Lit(), "=") {
				return refuse(fmt.Sprintf("%.40q is taken for a command; write no blanks around the =", word))
			}
			return refuse(fmt.Sprintf("%.40q is a command, and commands are not run here; write KEY=value", word))
		}
		assigns = cmd.Assigns
	case *syntax.DeclClause:
		if cmd.Variant.Value != "export" {
			return refuse(fmt.Sprintf("%q is not understood here; write KEY=value", cmd.Variant.Value))
		}
		for _, a := range cmd.Args {
			if a.Name == nil {
				return refuse("export takes no options here; write KEY=value (every variable goes to the services)")
			}
			if !a.Naked {
				assigns = append(assigns, a)
			}
		}
	default:
		return refuse("only assignments are read here, no commands and no conditions; write KEY=value")
	}
	for _, a := range assigns {
		at := line(a.Pos())
		es, multiline := s.assign(a, offset)
		if multiline {
			return append(errs, LineError{Line: at, Key: a.Name.Value, Reason: "the value runs over the end of the line; is a quote missing?"}), true
		}
		errs = append(errs, es...)
	}
	return errs, false
}

// elem is one value on its way into a variable.
type elem struct {
	index, line int
	value       string
}

var errNewline = errors.New("newline in a value")

// assign applies KEY=value, KEY+=value, KEY[i]=value, KEY=(...) or KEY+=(...).
// Elements whose value is wrong for their key are refused one by one.
func (s *shell) assign(a *syntax.Assign, offset int) (errs []LineError, multiline bool) {
	name := a.Name.Value
	at := int(a.Pos().Line()) + offset
	fail := func(err error) ([]LineError, bool) {
		if errors.Is(err, errNewline) {
			return nil, true
		}
		return []LineError{{Line: at, Key: name, Reason: expandReason(err)}}, false
	}
	if err := admissible(a); err != nil {
		return fail(err)
	}
	old := s.vars[name]
	next := &variable{elems: map[int]string{}, lines: map[int]int{}}
	if old != nil && (a.Append || a.Index != nil || a.Array == nil && old.array) {
		next.array = old.array
		maps.Copy(next.elems, old.elems)
		maps.Copy(next.lines, old.lines)
	}
	var set []elem
	var err error
	switch {
	case a.Array != nil:
		next.array = true
		set, err = s.arrayElems(a.Array, next, offset)
	case a.Index != nil:
		next.array = true
		var i int
		if i, err = s.index(a.Index); err == nil {
			set, err = s.scalar(a, i, at, next)
		}
	default:
		set, err = s.scalar(a, 0, at, next)
	}
	if err != nil {
		return fail(err)
	}
	for _, e := range set {
		if reason := check(name, e.index, e.value); reason != "" {
			errs = append(errs, LineError{Line: e.line, Key: keyOf(name, e.index, next.array), Value: e.value, Reason: reason})
			continue
		}
		next.elems[e.index] = e.value
		next.lines[e.index] = e.line
	}
	// Where nothing of it is right, an earlier value stays as it was.
	if len(errs) > 0 && len(errs) == len(set) {
		return errs, false
	}
	s.vars[name] = next
	return errs, false
}

// keyOf writes a variable's element as it is written in the file.
func keyOf(name string, i int, array bool) string {
	if !array {
		return name
	}
	return fmt.Sprintf("%s[%d]", name, i)
}

// scalar expands a.Value for element i.
func (s *shell) scalar(a *syntax.Assign, i, at int, cur *variable) ([]elem, error) {
	v := ""
	if a.Value != nil {
		var err error
		if v, err = s.literal(a.Value); err != nil {
			return nil, err
		}
	}
	if a.Append {
		v = cur.elems[i] + v
	}
	if len(v) > maxValue {
		return nil, fmt.Errorf("the value grows to %d bytes; at most %d are taken", len(v), maxValue)
	}
	return []elem{{i, at, v}}, nil
}

// arrayElems expands the elements of KEY=(...); they go after cur's.
func (s *shell) arrayElems(arr *syntax.ArrayExpr, cur *variable, offset int) ([]elem, error) {
	next := 0
	for i := range cur.elems {
		next = max(next, i+1)
	}
	var out []elem
	for _, el := range arr.Elems {
		at := int(el.Pos().Line()) + offset
		if el.Index != nil {
			i, err := s.index(el.Index)
			if err != nil {
				return nil, err
			}
			next = i
		}
		if el.Value == nil {
			out = append(out, elem{next, at, ""})
			next++
			continue
		}
		if el.Index != nil {
			v, err := s.literal(el.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, elem{next, at, v})
			next++
			continue
		}
		for v, err := range expand.FieldsSeq(s.config(), el.Value) {
			if err != nil {
				return nil, err
			}
			if err := plain(v); err != nil {
				return nil, err
			}
			if len(out) >= maxElems || next > maxIndex {
				return nil, fmt.Errorf("more than %d elements", maxElems)
			}
			out = append(out, elem{next, at, v})
			next++
		}
	}
	return out, nil
}

func (s *shell) literal(w *syntax.Word) (string, error) {
	v, err := expand.Literal(s.config(), unescape(w))
	if err != nil {
		return "", err
	}
	return v, plain(v)
}

// unescape writes \x outside quotes as 'x', since expand.Literal leaves such
// backslashes in the value, where bash takes them out.
func unescape(w *syntax.Word) *syntax.Word {
	out := &syntax.Word{}
	for _, part := range w.Parts {
		lit, ok := part.(*syntax.Lit)
		if !ok {
			out.Parts = append(out.Parts, part)
			continue
		}
		rest := lit.Value
		for {
			before, after, found := strings.Cut(rest, `\`)
			if before != "" {
				out.Parts = append(out.Parts, &syntax.Lit{Value: before})
			}
			if !found || after == "" {
				break
			}
			_, n := utf8.DecodeRuneInString(after)
			out.Parts = append(out.Parts, &syntax.SglQuoted{Value: after[:n]})
			rest = after[n:]
		}
	}
	return out
}

// plain refuses what no value of a dsas.conf holds.
func plain(v string) error {
	switch {
	case strings.Contains(v, "\n"):
		// Almost always a quote that was never closed.
		return errNewline
	case strings.ContainsRune(v, 0):
		return errors.New("the value holds a NUL byte")
	case len(v) > maxValue:
		return fmt.Errorf("the value has %d bytes; at most %d are taken", len(v), maxValue)
	}
	return nil
}

func (s *shell) index(x syntax.ArithmExpr) (int, error) {
	i, err := expand.Arithm(s.config(), x)
	if err != nil {
		return 0, err
	}
	if i < 0 || i > maxIndex {
		return 0, fmt.Errorf("index %d: use 0 to %d", i, maxIndex)
	}
	return i, nil
}

// admissible refuses what would need a command to run, before it is expanded.
func admissible(a *syntax.Assign) (err error) {
	expansions := 0
	syntax.Walk(a, func(n syntax.Node) bool {
		switch n.(type) {
		case *syntax.CmdSubst:
			err = errors.New("command substitution is not run here; write the value itself")
		case *syntax.ProcSubst:
			err = errors.New("process substitution is not run here; write the value itself")
		case *syntax.ParamExp, *syntax.ArithmExp:
			if expansions++; expansions > maxExpans {
				err = fmt.Errorf("more than %d expansions in one value", maxExpans)
			}
		}
		return err == nil
	})
	return err
}

func expandReason(err error) string {
	var unset expand.UnsetParameterError
	if errors.As(err, &unset) {
		name := ""
		if unset.Node != nil && unset.Node.Param != nil {
			name = unset.Node.Param.Value
		}
		if unset.Message == "unbound variable" && name != "" {
			return fmt.Sprintf("$%s is not set above; set it in an earlier line", name)
		}
		return fmt.Sprintf("$%s: %s", name, unset.Message)
	}
	return err.Error()
}
