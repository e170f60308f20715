#!/bin/sh
# Builds u-root's commands into one program. usage: build.sh OUTPUT
# Add or remove commands in commands.txt; bb.go holds the same list for go.sum
# (after a change: ./build.sh --list > bb.go && go mod tidy).
set -eu
case "$1" in
--list)
	cd "$(dirname "$0")"
	printf '//go:build bb\n\n// Package bb pins what the rescue commands of the initramfs need.\npackage bb\n\nimport (\n\t_ "github.com/u-root/gobusybox/src/cmd/makebb"\n'
	sed 's|.*|\t_ "github.com/u-root/u-root/cmds/core/&"|' commands.txt
	printf '\t_ "golang.org/x/tools/go/packages"\n)\n'
	exit
	;;
/*) out=$1 ;;
*) out=$(pwd)/$1 ;;
esac
mkdir -p "$(dirname "$out")"
cd "$(dirname "$0")"
# Renamed when whole: an interrupted build leaves no half program for make.
# goshsmall: the shell reads plain lines. The other one first asks the terminal
# where its cursor is, and waits for ever on a serial line that does not answer.
CGO_ENABLED=0 go run github.com/u-root/gobusybox/src/cmd/makebb -go-build-tags goshsmall -o "$out.new" \
	$(sed 's|^|github.com/u-root/u-root/cmds/core/|' commands.txt)
mv "$out.new" "$out"
