package tftp

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Outcome is how a request or a transfer ended.
type Outcome string

// The outcomes.
const (
	Sent     Outcome = "sent"      // whole, and acknowledged
	Probed   Outcome = "probed"    // the client wanted the size alone (UEFI does)
	Aborted  Outcome = "aborted"   // the client broke off, or its port closed
	TimedOut Outcome = "timeout"   // the client went away
	NotFound Outcome = "not-found" // no such file
	Refused  Outcome = "refused"   // a write, netascii, nonsense
	Failed   Outcome = "failed"    // the server could not give it, or ended
)

// FileOutcome labels a count: File is a loader's name, "pxelinux.cfg" or
// "other".
type FileOutcome struct {
	File    string
	Outcome Outcome
}

// Stats counts since the start.
type Stats struct {
	Transfers   map[FileOutcome]uint64 // ended, refused ones too
	Bytes       uint64                 // of file content sent, repeated ones too
	Retransmits uint64                 // blocks and OACKs sent again
	Dropped     uint64                 // requests beyond a limit
	Stray       uint64                 // packets from a wrong address or port, and nonsense
	Active      int                    // transfers now
}

type counters struct {
	bytes, retransmits, dropped, stray atomic.Uint64
	active                             atomic.Int64

	mu    sync.Mutex
	ended map[FileOutcome]uint64
}

func (c *counters) end(file string, how Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == nil {
		c.ended = map[FileOutcome]uint64{}
	}
	c.ended[FileOutcome{file, how}]++
}

// Stats counts since the start.
func (s *Server) Stats() Stats {
	s.count.mu.Lock()
	defer s.count.mu.Unlock()
	return Stats{Transfers: maps.Clone(s.count.ended), Bytes: s.count.bytes.Load(), Retransmits: s.count.retransmits.Load(),
		Dropped: s.count.dropped.Load(), Stray: s.count.stray.Load(), Active: int(s.count.active.Load())}
}
