package httpboot

import (
	"net/http"
	"strconv"
	"sync/atomic"
)

// Stats are counts since the Server was made.
type Stats struct {
	// Requests by what was asked for: script, failed, nbp, blob, config, events,
	// heartbeat, files, registry.
	Requests map[string]uint64
	// Errors by status code: 400, 403, 404, 405, 500.
	Errors map[string]uint64

	BlobBytes   uint64 // of content sent
	BlobsBroken uint64 // transfers that the reader broke off
	SlowReaders uint64 // transfers broken off because the reader was too slow
	Boots       uint64 // begun: scripts with a kernel
	Events      uint64 // of nodes, taken

	Conns        uint64 // open now
	ConnsRefused uint64 // beyond a limit
	LongPolls    uint64 // waiting now
}

// counters are what Stats is made from.
type counters struct {
	requests                                                       [len(routes)]atomic.Uint64
	errors                                                         [len(codes)]atomic.Uint64
	blobBytes, brokenBlobs, slowReaders, boots, events, waitingNow atomic.Uint64
}

var (
	routes = [...]string{"script", "failed", "nbp", "blob", "config", "events", "heartbeat", "files", "registry"}
	codes  = [...]int{http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusInternalServerError}
)

// Stats gives the counts as they are.
func (s *Server) Stats() Stats {
	st := Stats{
		Requests: map[string]uint64{}, Errors: map[string]uint64{},
		BlobBytes: s.stats.blobBytes.Load(), BlobsBroken: s.stats.brokenBlobs.Load(), SlowReaders: s.stats.slowReaders.Load(),
		Boots: s.stats.boots.Load(), Events: s.stats.events.Load(), LongPolls: s.stats.waitingNow.Load(),
	}
	for i, r := range routes {
		st.Requests[r] = s.stats.requests[i].Load()
	}
	for i, c := range codes {
		st.Errors[strconv.Itoa(c)] = s.stats.errors[i].Load()
	}
	open, refused := s.conns.count()
	st.Conns, st.ConnsRefused = uint64(open), refused
	return st
}

// counted counts requests of a route.
func (s *Server) counted(route string, h http.HandlerFunc) http.HandlerFunc {
	for i, r := range routes {
		if r == route {
			return func(w http.ResponseWriter, req *http.Request) {
				s.stats.requests[i].Add(1)
				h(w, req)
			}
		}
	}
	panic("no route " + route) // a slip of this package's own
}

func (s *Server) countError(code int) {
	for i, c := range codes {
		if c == code {
			s.stats.errors[i].Add(1)
		}
	}
}
