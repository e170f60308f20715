package agent

import (
	"io/fs"
	"os"
	"syscall"
	"testing"
)

func ids(st fs.FileInfo) (uid, gid uint32) {
	s := st.Sys().(*syscall.Stat_t)
	return s.Uid, s.Gid
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
