package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct{}

func (*completionCmd) Help() string {
	return `Examples:

    source <(dsas completion)
    dsas completion > /usr/share/bash-completion/completions/dsas`
}

// Run prints a script that knows all commands and flags, and asks the server
// for the nodes' names.
func (*completionCmd) Run(_ context.Context, a *app) error {
	var cases strings.Builder
	var walk func(path string, n *kong.Node)
	walk = func(path string, n *kong.Node) {
		var words []string
		takesNodes := false
		for _, child := range n.Children {
			if child.Type == kong.CommandNode && !child.Hidden {
				words = append(words, child.Name)
				walk(strings.TrimSpace(path+" "+child.Name), child)
			}
		}
		for _, arg := range n.Positional {
			takesNodes = takesNodes || arg.Name == "nodes" || arg.Name == "node"
		}
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				words = append(words, "--"+f.Name)
			}
		}
		nodes := ""
		if takesNodes {
			nodes = " nodes=1"
		}
		fmt.Fprintf(&cases, "    %q) words=\"%s\"%s ;;\n", path, strings.Join(words, " "), nodes)
	}
	walk("", a.model.Node)
	a.printf(completionScript, cases.String())
	return nil
}

// completionScript finds the command by the words that are none of flags; the
// longest path that is a command's decides what may follow.
const completionScript = `# bash completion for dsas
_dsas() {
  local cur="${COMP_WORDS[COMP_CWORD]}" path="" best="" w words nodes
  for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$w" in -*) continue ;; esac
    path="${path:+$path }$w"
    _dsas_words "$path" && best="$path"
  done
  _dsas_words "$best"
  [ -n "$nodes" ] && words+=" $(dsas node ls --names 2>/dev/null)"
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
_dsas_words() {
  nodes=""
  case "$1" in
%s    *) return 1 ;;
  esac
}
complete -F _dsas dsas
`
