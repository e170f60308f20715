package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"dsas"
)

// testNamespace makes a namespace that goes with the test.
func testNamespace(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	name := fmt.Sprintf("dsasn%d-%d", os.Getpid(), len(t.Name()))
	if err := Create(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Delete(context.Background(), name); err != nil {
			t.Error(err)
		}
		if Exists(name) {
			t.Errorf("Exists(%s) = true after Delete; want false", name)
		}
	})
	return name
}

func inode(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestDo(t *testing.T) {
	name := testNamespace(t)
	outside := inode(t)
	var inside uint64
	if err := Do(name, func() error { inside = inode(t); return nil }); err != nil {
		t.Fatal(err)
	}
	if inside == outside {
		t.Errorf("Do ran in the caller's namespace %d; want another", inside)
	}
	want := errors.New("mine")
	if err := Do(name, func() error { return want }); err != want {
		t.Errorf("Do = %v; want fn's own error", err)
	}
	// No thread may be left behind in the namespace for other goroutines.
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if err := Do(name, func() error { return nil }); err != nil {
				t.Error(err)
			}
			if got := inode(t); got != outside {
				t.Errorf("after Do the thread is in namespace %d; want %d", got, outside)
			}
		})
	}
	wg.Wait()
}

func TestDoMissing(t *testing.T) {
	if err := Do("dsas-none", func() error { return nil }); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Do(missing) = %v; want ErrNotFound", err)
	}
	if err := Do("../net", func() error { return nil }); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("Do(../net) = %v; want ErrInvalid", err)
	}
}

func TestCreateTwice(t *testing.T) {
	name := testNamespace(t)
	if err := Create(t.Context(), name); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("Create(existing) = %v; want ErrConflict", err)
	}
}

func TestDialer(t *testing.T) {
	name := testNamespace(t)
	var l net.Listener
	if err := Do(name, func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := Dialer{Namespace: name}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("dial inside: %v", err)
	}
	c.Close()
	// The same port outside is another one: nobody answers there.
	if c, err := (&Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the namespace's listener was reached from outside")
	}
	if _, err := d.DialContext(t.Context(), "tcp", "localhost:1"); !errors.Is(err, dsas.ErrInvalid) {
		t.Errorf("dial by name = %v; want ErrInvalid", err)
	}
}
