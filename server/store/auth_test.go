package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dsas"
)

func hash(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

func TestSetup(t *testing.T) {
	f := open(t)
	_, err := f.PasswordHash(f.ctx)
	wantErr(t, "PasswordHash(none)", err, dsas.ErrNotFound)
	wantErr(t, "SetPassword(no token)", f.SetPassword(f.ctx, hash(1), t0, "x"), dsas.ErrDenied)
	noErr(t, f.PutSetup(f.ctx, hash(1), t0.Add(time.Hour)))
	noErr(t, f.PutSetup(f.ctx, hash(2), t0.Add(time.Hour)))
	for what, c := range map[string]struct {
		hash []byte
		at   time.Time
	}{"replaced": {hash(1), t0}, "nil": {nil, t0}, "expired": {hash(2), t0.Add(time.Hour)}} {
		wantErr(t, "CheckSetup("+what+")", f.CheckSetup(f.ctx, c.hash, c.at), dsas.ErrDenied)
		wantErr(t, "SetPassword("+what+")", f.SetPassword(f.ctx, c.hash, c.at, "x"), dsas.ErrDenied)
	}
	noErr(t, f.CheckSetup(f.ctx, hash(2), t0))
	// Of many who use the link at once, one sets the password.
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			err := f.SetPassword(f.ctx, hash(2), t0, fmt.Sprint("hash", i))
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, dsas.ErrDenied) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("SetPassword worked %d times; want 1", won.Load())
	}
	if got := must(f.PasswordHash(f.ctx))(t); got[:4] != "hash" {
		t.Errorf("PasswordHash = %q; want what was set", got)
	}
	wantErr(t, "PutSetup(password set)", f.PutSetup(f.ctx, hash(3), t0.Add(time.Hour)), dsas.ErrConflict)
	noErr(t, f.AddSession(f.ctx, hash(9), t0, time.Hour))
	noErr(t, f.ClearPassword(f.ctx))
	_, err = f.PasswordHash(f.ctx)
	wantErr(t, "PasswordHash(cleared)", err, dsas.ErrNotFound)
	wantErr(t, "UseSession(cleared)", f.UseSession(f.ctx, hash(9), t0, time.Hour), dsas.ErrNotFound)
	noErr(t, f.PutSetup(f.ctx, hash(3), t0.Add(time.Hour)))
}

func TestSessions(t *testing.T) {
	f := open(t)
	const idle = time.Hour
	wantErr(t, "UseSession(unknown)", f.UseSession(f.ctx, hash(1), t0, idle), dsas.ErrNotFound)
	noErr(t, f.AddSession(f.ctx, hash(1), t0, idle))
	noErr(t, f.AddSession(f.ctx, hash(2), t0, idle))
	at := t0
	for range 4 { // use keeps it alive
		at = at.Add(59 * time.Minute)
		noErr(t, f.UseSession(f.ctx, hash(1), at, idle))
	}
	wantErr(t, "UseSession(idle)", f.UseSession(f.ctx, hash(2), at, idle), dsas.ErrNotFound)
	wantErr(t, "UseSession(idle)", f.UseSession(f.ctx, hash(1), at.Add(idle), idle), dsas.ErrNotFound)
	noErr(t, f.DeleteSession(f.ctx, hash(1)))
	wantErr(t, "UseSession(deleted)", f.UseSession(f.ctx, hash(1), at, idle), dsas.ErrNotFound)
	noErr(t, f.DeleteSession(f.ctx, hash(1)))
	// Beginning one forgets those that are over.
	noErr(t, f.AddSession(f.ctx, hash(3), at, idle))
	wantErr(t, "UseSession(forgotten)", f.UseSession(f.ctx, hash(2), t0, idle), dsas.ErrNotFound)
	noErr(t, f.UseSession(f.ctx, hash(3), at, idle))
}

func TestSessionsAreBounded(t *testing.T) {
	f := open(t)
	const most = 1000
	key := func(i int) []byte { return fmt.Appendf(nil, "%032d", i) }
	for i := range most + 2 {
		noErr(t, f.AddSession(f.ctx, key(i), t0.Add(time.Duration(i)), time.Hour))
	}
	for i, want := range map[int]bool{0: false, 1: false, 2: true, most + 1: true} {
		if got := f.UseSession(f.ctx, key(i), t0, time.Hour) == nil; got != want {
			t.Errorf("session %d of %d lives: %v; want %v", i, most+2, got, want)
		}
	}
}
