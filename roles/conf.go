package roles

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"dsas"
)

// confFile is the optional template whose text a role adds to dsas.conf.
const confFile = "dsas.conf"

var (
	variableRE = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	// ownKeyRE: keys that Conf itself writes, or that are a node's own.
	ownKeyRE = regexp.MustCompile(`^(SYSTEMNAME|IPADDRESS[0-9]*|GATEWAY|INTERFACE|BONDING|MODULES|NAMESERVER|SEARCH|SERVICEADDRESS)$`)
	// shellKeyRE: variables that mean something to a shell or to the dynamic
	// linker. dsas.conf is exported to services: a site variable PATH would
	// stop every one of them. Some (UID, EUID, PPID) bash refuses to assign.
	shellKeyRE = regexp.MustCompile(`^(PATH|IFS|ENV|HOME|SHELL|SHELLOPTS|PWD|OLDPWD|CDPATH|PS[0-9]|UID|EUID|PPID|GROUPS|LANG|TZ|TERM|USER|LOGNAME|OPTIND|OPTARG|OPTERR|RANDOM|SECONDS|LINENO|HOSTNAME|HOSTTYPE|MACHTYPE|OSTYPE|DIRSTACK|FUNCNAME|FUNCNEST|GLOBIGNORE|EPOCHSECONDS|EPOCHREALTIME|SRANDOM|TMOUT|TMPDIR|POSIXLY_CORRECT|PROMPT_COMMAND|LD_.*|LC_.*|BASH.*|COMP_.*|HIST.*)$`)
)

// Conf writes the text of a node's /etc/dsas.conf, a bash fragment. In order:
// site variables, what the node is and has, the role's own lines, and the
// node's Conf as it is. What comes later wins, and may use what stands above.
// Every value but the last two kinds is quoted, so that it is a value whatever
// it holds; the last two are an operator's own shell text.
func Conf(def Definition, in Input) (string, error) {
	text, err := conf(def, in)
	if err != nil {
		return "", fmt.Errorf("render dsas.conf of node %s: %w", in.Node.Name, err)
	}
	return text, nil
}

func conf(def Definition, in Input) (string, error) {
	if err := in.check(); err != nil {
		return "", err
	}
	w := &confWriter{}
	w.comment("Written by dsas for node %s, role %s; changes made here are lost at the next boot.", in.Node.Name, in.Role.Name)
	if len(in.Settings.Variables) > 0 {
		w.comment("---- Site variables ----")
	}
	for _, k := range slices.Sorted(maps.Keys(in.Settings.Variables)) {
		if err := checkKey("site variable", k); err != nil {
			return "", err
		}
		w.set(k, in.Settings.Variables[k])
	}

	w.comment("---- Base configuration ----")
	w.set("SYSTEMNAME", in.Node.Name)

	w.comment("---- Network ----")
	name, options, err := in.bond()
	if err != nil {
		return "", err
	}
	var modules []string
	if name != "" {
		ports := []string{name}
		for i := range in.Node.NICs {
			ports = append(ports, fmt.Sprintf("eth%d", i))
		}
		w.list("BONDING", strings.Join(ports, " "))
		if len(options) > 0 {
			modules = append(modules, strings.Join(append([]string{name}, options...), " "))
		}
		w.set("INTERFACE[0]", name)
	}
	w.set("IPADDRESS0", in.Node.Address.String())
	if in.Subnet.Gateway.IsValid() {
		w.set("GATEWAY[0]", in.Subnet.Gateway.String())
	}
	for i, f := range in.Node.Interfaces {
		w.set(fmt.Sprintf("INTERFACE[%d]", i+1), f.Device)
		w.set(fmt.Sprintf("IPADDRESS%d", i+1), f.Address.String())
	}
	var dns []string
	for _, a := range in.Subnet.DNS {
		dns = append(dns, a.String())
	}
	w.list("NAMESERVER", dns...)
	if in.Subnet.Domain != "" {
		w.list("SEARCH", in.Subnet.Domain)
	}
	var carried []string
	for _, a := range in.CarriedAddresses() {
		carried = append(carried, a.String())
	}
	w.list("SERVICEADDRESS", carried...)

	w.comment("---- Hardware ----")
	w.list("MODULES", append(modules, in.Role.Modules...)...)
	for _, k := range slices.Sorted(maps.Keys(in.Node.Disks)) {
		if err := checkKey("disk key", k); err != nil {
			return "", err
		}
		w.set(k, in.Node.Disks[k])
	}
	if w.err != nil {
		return "", w.err
	}

	extra, err := roleConf(def, in)
	if err != nil {
		return "", err
	}
	w.raw("role "+in.Role.Name, extra)
	w.raw("node "+in.Node.Name, in.Node.Conf)
	return w.b.String(), w.err
}

// roleConf renders the role's own lines, if it has any.
func roleConf(def Definition, in Input) (string, error) {
	if def.FS == nil {
		return "", nil
	}
	text, err := readText(def.FS, confFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	out, err := execute(confFile, text, in)
	return string(out), err
}

// checkKey refuses a variable that is no name, is a key of our own, or means
// something to the shell.
// CheckVariables says what is wrong with site variables: one wrong one would
// keep every node from its dsas.conf.
func CheckVariables(variables map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(variables)) {
		if err := checkKey("site variable", k); err != nil {
			return err
		}
		w := &confWriter{}
		if w.set(k, variables[k]); w.err != nil {
			return w.err
		}
	}
	return nil
}

func checkKey(what, k string) error {
	switch {
	case !variableRE.MatchString(k):
		return fmt.Errorf("%s %q: use capitals, digits and underscores, as LVSADDRESS: %w", what, k, dsas.ErrInvalid)
	case ownKeyRE.MatchString(k):
		return fmt.Errorf("%s %s: dsas writes this key itself; use another name, or a line in the node's conf: %w", what, k, dsas.ErrInvalid)
	case shellKeyRE.MatchString(k):
		return fmt.Errorf("%s %s: it has a meaning for shells or for every program; use another name: %w", what, k, dsas.ErrInvalid)
	}
	return nil
}

// confWriter writes assignments; the first error stays.
type confWriter struct {
	b   strings.Builder
	err error
}

func (w *confWriter) comment(format string, args ...any) {
	fmt.Fprintf(&w.b, "# "+format+"\n", args...)
}

// set writes KEY=value. The key is trusted, the value is not.
func (w *confWriter) set(key, value string) {
	w.check(key, value)
	fmt.Fprintf(&w.b, "%s=%s\n", key, quote(value))
}

// list writes KEY=("a" "b"), or nothing where there are no values. Elements
// are always quoted: a bare [0]=x would be an index.
func (w *confWriter) list(key string, values ...string) {
	if len(values) == 0 {
		return
	}
	quoted := make([]string, len(values))
	for i, v := range values {
		w.check(key, v)
		quoted[i] = quoteAlways(v)
	}
	fmt.Fprintf(&w.b, "%s=(%s)\n", key, strings.Join(quoted, " "))
}

// check refuses control characters: no key has a use for one, and a line break
// would make the line numbers of errors point elsewhere.
func (w *confWriter) check(key, value string) {
	if w.err == nil && strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		w.err = fmt.Errorf("%s=%q: holds a control character; write it in one line: %w", key, value, dsas.ErrInvalid)
	}
}

// raw adds an operator's own lines.
func (w *confWriter) raw(whose, text string) {
	text = strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	if text == "" {
		return
	}
	if strings.ContainsRune(text, 0) && w.err == nil {
		w.err = fmt.Errorf("lines of %s: hold a NUL byte; remove it: %w", whose, dsas.ErrInvalid)
	}
	w.comment("---- Lines of %s, as they are ----", whose)
	w.b.WriteString(text + "\n")
}

// quote makes one shell word of s (POSIX.1-2017 XCU section 2.2).
func quote(s string) string {
	if s == "" || isPlain(s, "") {
		return s
	}
	return quoteAlways(s)
}

// quoteAlways is quote with the quotes even where none is needed. Double ones
// only where nothing inside has a meaning, for a reader's eye.
func quoteAlways(s string) string {
	if isPlain(s, " ") {
		return `"` + s + `"`
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func isPlain(s, more string) bool {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:,@%+=-"
	return strings.Trim(s, plain+more) == "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune(plain+more, r)
	})
}
