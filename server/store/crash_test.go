package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/server/store"
)

// TestMain turns the test binary into the victim of TestSIGKILL.
func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_VICTIM"); dir != "" {
		run := victim
		if os.Getenv("STORE_TEST_CROWD") != "" {
			run = crowd
		}
		if err := run(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// victim gives leases and adds events, and says each only when it has it, until
// it is killed.
func victim(dir string) error {
	ctx := context.Background()
	s, err := openDir(ctx, dir)
	if err != nil {
		return err
	}
	sn := subnet(0, 0)
	sn.Prefix = netip.MustParsePrefix("10.77.0.0/16")
	sn.Pool = dsas.Range{First: netip.MustParseAddr("10.77.1.0"), Last: netip.MustParseAddr("10.77.250.0")}
	start := len(os.Getenv("STORE_TEST_ROUND")) * 10_000
	for i := start; ; i++ {
		l, err := s.LeaseFor(ctx, sn, mac(i), "", none, t0)
		if err != nil {
			return err
		}
		e, err := s.AddEvent(ctx, dsas.Event{Kind: dsas.KindServer, Message: l.Address.String()})
		if err != nil {
			return err
		}
		fmt.Println(l.Address, l.MAC, e.ID)
	}
}

// Killed at any moment, what was said is there, and nothing is given twice.
func TestSIGKILL(t *testing.T) {
	f := open(t)
	noErr(t, f.Close())
	said := map[string]string{} // address to MAC
	var events []string
	for round := 1; round <= 3; round++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_VICTIM="+f.dir, "STORE_TEST_ROUND="+strings.Repeat("x", round))
		cmd.Stderr = os.Stderr
		out := must(cmd.StdoutPipe())(t)
		noErr(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == 100*round { // and reads on what was said until it died
				noErr(t, cmd.Process.Kill())
			}
			w := strings.Fields(lines.Text())
			if len(w) < 3 {
				continue // cut off in the middle
			}
			if other, twice := said[w[0]]; twice {
				t.Errorf("%s was given to %s and %s", w[0], other, w[1])
			}
			said[w[0]] = w[1]
			events = append(events, w[2])
		}
		cmd.Wait()
		if len(said) < 100*round {
			t.Fatalf("round %d: the victim said %d leases; want at least %d", round, len(said), 100*round)
		}
	}
	f.reopen()
	have := map[string]string{}
	for _, l := range must(f.Leases(f.ctx))(t) {
		have[l.Address.String()] = l.MAC.String()
	}
	for a, m := range said {
		if have[a] != m {
			t.Errorf("lease of %s = %q; want %s", a, have[a], m)
		}
	}
	kept := map[string]bool{}
	for _, e := range must(f.Events(f.ctx, store.EventFilter{Limit: 10_000}))(t) {
		kept[fmt.Sprint(e.ID)] = true
	}
	for _, id := range events {
		if !kept[id] {
			t.Errorf("event %s is lost", id)
		}
	}
}

// The files as they lie there while the store is open, as after a power cut,
// have all that was answered.
func TestFilesAreCompleteWhileOpen(t *testing.T) {
	f := open(t)
	sn := subnet(10, 200)
	must(f.CreateNode(f.ctx, node("w1", "10.77.0.201/24", 201)))(t)
	noErr(t, f.Seen(f.ctx, "w1", t0))
	for m := 1; m <= 20; m++ {
		f.get(sn, m, none, t0)
	}
	must(f.AddEvent(f.ctx, dsas.Event{Node: "w1", Kind: dsas.KindReady}))(t)

	copied := t.TempDir()
	for _, name := range []string{"dsas.db", "dsas.db-wal", "key"} { // not the shm: it is memory
		data := must(os.ReadFile(filepath.Join(f.dir, name)))(t)
		noErr(t, os.WriteFile(filepath.Join(copied, name), data, 0o600))
	}
	again := &fixture{t: t, ctx: f.ctx, dir: copied, time: t0}
	again.reopen()
	if got := must(again.Leases(f.ctx))(t); len(got) != 20 {
		t.Errorf("Leases of the copy = %d; want 20", len(got))
	}
	if got := must(again.Status(f.ctx, "w1"))(t); got.Phase != dsas.PhaseReady || !got.LastSeen.Equal(t0) {
		t.Errorf("Status of the copy = %+v; want ready, seen %s", got, t0)
	}
	expect(t, "lease in the copy", again.get(sn, 5, none, t0), 14)
	expect(t, "next lease in the copy", again.get(sn, 99, none, t0), 30)
	// A WAL cut off in the middle costs its end and nothing else.
	wal := filepath.Join(copied, "dsas.db-wal")
	noErr(t, again.Close())
	for _, name := range []string{"dsas.db", "dsas.db-wal"} {
		data := must(os.ReadFile(filepath.Join(f.dir, name)))(t)
		noErr(t, os.WriteFile(filepath.Join(copied, name), data, 0o600))
	}
	info := must(os.Stat(wal))(t)
	noErr(t, os.Truncate(wal, info.Size()-100))
	again.reopen()
	if got := must(again.Leases(f.ctx))(t); len(got) != 20 {
		t.Errorf("Leases of the cut copy = %d; want 20", len(got))
	}
	if got := must(again.Status(f.ctx, "w1"))(t); got.Phase != dsas.PhaseNew {
		t.Errorf("phase in the cut copy = %s; want new: the last event was cut off", got.Phase)
	}
}

// crowd has many clients take, renew and give back leases at once, and says each
// lease when it has it, until it is killed. A pool of few addresses has them
// change hands. Time passes by a minute from round to round, so that most
// renewals are covered by what is on disk.
func crowd(dir string) error {
	ctx := context.Background()
	s, err := openDir(ctx, dir)
	if err != nil {
		return err
	}
	sn := subnet(10, 200)
	round := len(os.Getenv("STORE_TEST_CROWD"))
	now := t0.Add(time.Duration(round) * time.Minute)
	errs := make(chan error)
	for w := range 32 {
		go func() {
			r := rand.New(rand.NewPCG(uint64(round), uint64(w)))
			for {
				m := 1 + w*10 + r.IntN(10)
				l, err := s.LeaseFor(ctx, sn, mac(m), fmt.Sprint(m), none, now)
				if errors.Is(err, store.ErrPoolExhausted) {
					continue
				}
				if err != nil {
					errs <- err
					return
				}
				// One write(2) is one line, whole (pipe(7)).
				fmt.Printf("lease %s %s %d\n", l.Address, l.MAC, l.Expires.UnixNano())
				if r.IntN(4) == 0 {
					fmt.Printf("gone %s %s 0\n", l.Address, l.MAC) // from here on nothing is promised
					if err := s.Release(ctx, l.MAC, l.Address); err != nil {
						errs <- err
						return
					}
				}
				if r.IntN(8) == 0 {
					if err := s.NoteEvent(dsas.Event{MAC: l.MAC, Kind: dsas.KindDHCP}); err != nil {
						errs <- err
						return
					}
				}
			}
		}()
	}
	return <-errs
}

// Killed at random moments with many leases on their way: none that was
// promised is lost or shorter than it was said, none is given twice, and the
// database is sound.
func TestSIGKILLInACrowd(t *testing.T) {
	rounds := 20
	if os.Getenv("DSAS_LONG") != "" {
		rounds = 200
	}
	type promise struct {
		mac     string
		expires int64
	}
	f := open(t)
	noErr(t, f.Close())
	promised := map[string]promise{} // by address
	total := 0
	for round := 1; round <= rounds; round++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_VICTIM="+f.dir, "STORE_TEST_CROWD="+strings.Repeat("x", round))
		cmd.Stderr = os.Stderr
		out := must(cmd.StdoutPipe())(t)
		noErr(t, cmd.Start())
		now := t0.Add(time.Duration(round) * time.Minute).UnixNano()
		kill := 1 + rand.IntN(400)
		lines := bufio.NewScanner(out)
		said := 0
		for ; lines.Scan(); said++ {
			if said == kill {
				noErr(t, cmd.Process.Kill())
			}
			w := strings.Fields(lines.Text())
			if len(w) != 4 {
				continue // cut off in the middle
			}
			was, held := promised[w[1]]
			switch {
			case w[0] == "gone" && was.mac == w[2]:
				delete(promised, w[1])
			case w[0] == "lease":
				if held && was.mac != w[2] && was.expires > now {
					t.Errorf("round %d: %s was given to %s while %s had it", round, w[1], w[2], was.mac)
				}
				until, _ := strconv.ParseInt(w[3], 10, 64)
				promised[w[1]] = promise{w[2], until}
			}
		}
		cmd.Wait()
		if said < kill {
			t.Fatalf("round %d: the victim ended after %d of %d lines", round, said, kill)
		}
		total += said
		f.reopen()
		for a, p := range promised {
			if p.expires <= now {
				continue
			}
			l, err := f.Lease(f.ctx, netip.MustParseAddr(a), time.Unix(0, now))
			if err != nil || l.MAC.String() != p.mac || l.Expires.UnixNano() < p.expires {
				t.Errorf("round %d: lease of %s = %+v, %v; want that of %s, until %d at least", round, a, l, err, p.mac, p.expires)
			}
		}
		sound(t, f)
	}
	t.Logf("%d kills, %d answers", rounds, total)
}
