package httpboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"dsas"
	"dsas/client/sign"
	"dsas/server/boot"
)

// nodeConfig answers the boot token with everything the node is to be. The
// token holds until the node's first signed request or for 15 minutes, so a
// lost reply or a restarted server bricks no boot.
func (s *Server) nodeConfig(w http.ResponseWriter, r *http.Request) {
	if s.tooManyFailures(w, r) {
		return
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" || len(token) > 128 {
		s.fail(w, r, fmt.Errorf("node config: no boot token: %w", dsas.ErrDenied))
		return
	}
	hash := sha256.Sum256([]byte(token))
	b, err := s.Store.BootByToken(r.Context(), hash[:])
	if errors.Is(err, dsas.ErrNotFound) {
		err = fmt.Errorf("node config: this boot token is not known; boot again: %w", dsas.ErrDenied)
		s.noteDenied(r)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if err := s.tokenHolds(r, b); err != nil {
		// No boot: it is the server that says it, and the node has proven nothing.
		if s.said.allow("refused "+b.ID, s.Now(), time.Minute) {
			s.event(r.Context(), dsas.Event{Node: b.Node, MAC: b.MAC, Kind: dsas.KindWarning, Message: "node config refused: " + err.Error()})
		}
		s.fail(w, r, err)
		return
	}
	cfg, err := s.assemble(r.Context(), b)
	if err != nil {
		if s.said.allow("config "+b.ID, s.Now(), time.Minute) {
			s.event(r.Context(), dsas.Event{Node: b.Node, MAC: b.MAC, Kind: dsas.KindFailed, Message: err.Error()})
		}
		s.fail(w, r, err)
		return
	}
	s.event(r.Context(), dsas.Event{Node: b.Node, MAC: b.MAC, Boot: b.ID, Kind: dsas.KindConfigTaken,
		Message: fmt.Sprintf("role %s, release %s", cfg.Role.Name, cfg.Release)})
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, cfg)
}

// tokenHolds says why a token is worth nothing (any more).
func (s *Server) tokenHolds(r *http.Request, b dsas.Boot) error {
	switch {
	case !b.FirstEvent.IsZero():
		return fmt.Errorf("boot %s: its token was used already: %w", b.ID, dsas.ErrDenied)
	case s.Now().Sub(b.Created) > tokenLife:
		return fmt.Errorf("boot %s: its token is older than %s; boot again: %w", b.ID, tokenLife, dsas.ErrDenied)
	}
	if !b.Address.IsValid() { // begun by an older dsas
		node, err := s.Store.Node(r.Context(), b.Node)
		if err != nil {
			return err
		}
		b.Address = node.Address.Addr()
	}
	if from, err := remoteAddr(r); err != nil || from != b.Address {
		return fmt.Errorf("boot %s: asked for from %s, not from %s: %w", b.ID, r.RemoteAddr, b.Address, dsas.ErrDenied)
	}
	return nil
}

// nodeOf gives the node of a boot; for a box that belongs to none, one made up
// of what is known of it.
func (s *Server) nodeOf(ctx context.Context, b dsas.Boot) (dsas.Node, error) {
	if b.Node != "" {
		return s.Store.Node(ctx, b.Node)
	}
	n := dsas.Node{Name: boot.NewName(b.MAC), NICs: []dsas.NIC{{MAC: b.MAC}}, Role: b.Role}
	sub, ok := s.subnetOf(b.Address)
	if !ok {
		return n, fmt.Errorf("boot %s: its address %s is of no subnet that is served: %w", b.ID, b.Address, dsas.ErrNotFound)
	}
	n.Address = netip.PrefixFrom(b.Address, sub.Prefix.Bits())
	return n, nil
}

// who names a boot's box in errors.
func who(b dsas.Boot) string {
	if b.Node == "" {
		return b.MAC.String()
	}
	return b.Node
}

// seen records a sign of life. A box that belongs to no node has no status.
func (s *Server) seen(ctx context.Context, b dsas.Boot, t time.Time) error {
	if b.Node == "" {
		return nil
	}
	return s.Store.Seen(ctx, b.Node, t)
}

// assemble makes the node config of a boot: the image is the one the boot
// began with, even if another was published since.
func (s *Server) assemble(ctx context.Context, b dsas.Boot) (dsas.NodeConfig, error) {
	node, err := s.nodeOf(ctx, b)
	if err != nil {
		return dsas.NodeConfig{}, err
	}
	full, err := s.Store.Boot(ctx, b.ID)
	if err != nil {
		return dsas.NodeConfig{}, err
	}
	rel, err := s.Releases.Release(b.Image)
	if err != nil {
		return dsas.NodeConfig{}, fmt.Errorf("role %s: %w", b.Role, err)
	}
	rendered, err := s.Renderer.Render(ctx, node, b.Role, b.Image)
	if err != nil {
		return dsas.NodeConfig{}, fmt.Errorf("render role %s for %s: %w", b.Role, node.Name, err)
	}
	secrets, err := s.Renderer.Secrets(ctx, node, b.Node == "")
	if err != nil {
		return dsas.NodeConfig{}, err
	}
	return dsas.NodeConfig{
		Node: node.Name, Boot: b.ID, Role: rendered.Role, Release: rel.Name(), Manifest: rel.Manifest, Signed: rel.Signed, Registry: s.Registry,
		Conf: rendered.Conf, Files: append(rendered.Files, secrets...), FilesTag: rendered.Tag,
		Time: s.Now(), SessionKey: full.Session, Heartbeat: s.Heartbeat,
	}, nil
}

// maxSigned bounds a signed request's body.
const maxSigned = 1 << 20

type signedHandler func(w http.ResponseWriter, r *http.Request, b dsas.Boot, body []byte) error

// signed lets through only requests that carry the session key's signature.
func (s *Server) signed(next signedHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.tooManyFailures(w, r) {
			return
		}
		// The boot first: whoever names none must not fill memory with a body.
		b, err := s.Store.Boot(r.Context(), r.Header.Get(sign.HeaderBoot))
		if errors.Is(err, dsas.ErrNotFound) {
			err = fmt.Errorf("boot %.40q is not known: %w", r.Header.Get(sign.HeaderBoot), dsas.ErrDenied)
		}
		var body []byte
		if err == nil {
			if body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxSigned)); err != nil {
				err = fmt.Errorf("read request: %w: %w", err, dsas.ErrInvalid)
			}
		}
		if err == nil {
			err = sign.Verify(r, b.Session, body, s.Now())
			if err != nil {
				err = fmt.Errorf("%w: %w", err, dsas.ErrDenied)
			}
		}
		if err != nil {
			if errors.Is(err, dsas.ErrDenied) {
				s.noteDenied(r)
			}
			s.fail(w, r, err)
			return
		}
		if b.FirstEvent.IsZero() {
			if err := s.Store.MarkFirstEvent(r.Context(), b.ID, s.Now()); err != nil {
				s.fail(w, r, err)
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if err := next(w, r, b, body); err != nil {
			s.fail(w, r, err)
		}
	}
}

// maxDenied is how many requests with a wrong token or signature an address may
// make in a minute; a node that the server has forgotten makes some ten.
const maxDenied = 120

// tooManyFailures answers who has tried too often, before anything is looked up.
func (s *Server) tooManyFailures(w http.ResponseWriter, r *http.Request) bool {
	from, err := remoteAddr(r)
	if err != nil || !s.failed.spent(from.String(), s.Now(), maxDenied) {
		return false
	}
	w.Header().Set("Retry-After", "60")
	http.Error(w, "too many wrong tokens or signatures from this address; wait a minute", http.StatusTooManyRequests)
	return true
}

func (s *Server) noteDenied(r *http.Request) {
	if from, err := remoteAddr(r); err == nil {
		s.failed.allow(from.String(), s.Now(), maxDenied)
	}
}

const (
	maxEvents  = 1000
	maxMessage = 2 << 10
	maxDetail  = 8 << 10
	// maxInventory is what the store keeps of a detail: about 60 disks and NICs.
	maxInventory = 16 << 10
)

// events takes what a node says of itself: only kinds that are a node's to
// say, always about itself, and of bounded length.
func (s *Server) events(w http.ResponseWriter, r *http.Request, b dsas.Boot, body []byte) error {
	nonce := b.ID + "/" + r.Header.Get(sign.HeaderNonce)
	if !s.nonces.first(nonce) {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	err := s.takeEvents(r.Context(), b, body)
	if err != nil {
		s.nonces.forget(nonce)
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) takeEvents(ctx context.Context, b dsas.Boot, body []byte) error {
	var events []dsas.Event
	if err := json.Unmarshal(body, &events); err != nil {
		return fmt.Errorf("events of %s: %w: %w", who(b), err, dsas.ErrInvalid)
	}
	if len(events) > maxEvents {
		return fmt.Errorf("events of %s: %d at once; at most %d: %w", who(b), len(events), maxEvents, dsas.ErrInvalid)
	}
	now := s.Now()
	for i, e := range events {
		if !nodeMaySay(e.Kind) {
			return fmt.Errorf("events of %s: kind %.40q is not a node's to say: %w", who(b), e.Kind, dsas.ErrInvalid)
		}
		e.ID, e.Node, e.MAC, e.Boot = 0, b.Node, b.MAC, b.ID
		if d := now.Sub(e.Time); d < -time.Minute || d > 24*time.Hour {
			e.Time = now // a node whose clock was not set yet
		}
		e.Message = clip(e.Message, maxMessage)
		if e.Kind == dsas.KindInventory {
			// JSON that lost its beginning is none.
			if len(e.Detail) > maxInventory || !json.Valid([]byte(e.Detail)) {
				return fmt.Errorf("inventory of %s: want JSON of at most %d bytes; it has %d: %w", who(b), maxInventory, len(e.Detail), dsas.ErrInvalid)
			}
		} else {
			e.Detail = clipFront(e.Detail, maxDetail)
		}
		events[i] = e
	}
	// All of a batch or nothing: it is sent again as it is.
	if _, err := s.Store.AddEvents(ctx, events); err != nil {
		return err
	}
	s.stats.events.Add(uint64(len(events)))
	return s.seen(ctx, b, now)
}

func nodeMaySay(k dsas.Kind) bool {
	switch k {
	case dsas.KindInit, dsas.KindFetch, dsas.KindFetched, dsas.KindPartBad, dsas.KindConf, dsas.KindConfError,
		dsas.KindSwitched, dsas.KindService, dsas.KindReady, dsas.KindFailed, dsas.KindLink, dsas.KindFiles, dsas.KindWarning,
		dsas.KindInventory:
		return true
	}
	return false
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// clipFront keeps the end: of a log that is where the reason stands.
func clipFront(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}

func (s *Server) heartbeat(w http.ResponseWriter, r *http.Request, b dsas.Boot, _ []byte) error {
	// One that is played again must not make a dead node look alive.
	if nonce := b.ID + "/" + r.Header.Get(sign.HeaderNonce); s.nonces.first(nonce) {
		if err := s.seen(r.Context(), b, s.Now()); err != nil {
			s.nonces.forget(nonce)
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// maxWait bounds a long poll below the usual idle limits on the way.
const maxWait = 30 * time.Second

// files is the long poll for changed rendered files: answered at once when
// they differ from what the node has, else when they change.
func (s *Server) files(w http.ResponseWriter, r *http.Request, b dsas.Boot, _ []byte) error {
	wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
	if err != nil || wait < 0 || wait > maxWait {
		wait = maxWait
	}
	tag := r.URL.Query().Get("tag")
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(wait + time.Minute))
	for {
		changed := s.Renderer.Changed()
		same, err := s.sameFiles(r.Context(), b, tag)
		if err != nil {
			return err
		}
		if !same {
			node, err := s.nodeOf(r.Context(), b)
			if err != nil {
				return err
			}
			rendered, err := s.Renderer.Render(r.Context(), node, b.Role, b.Image)
			if err != nil {
				return err
			}
			if rendered.Tag != tag { // it may have changed back since
				return writeSigned(w, r, b, map[string]any{"tag": rendered.Tag, "files": rendered.Files, "conf": rendered.Conf})
			}
		}
		s.stats.waitingNow.Add(1)
		select {
		case <-changed:
			s.stats.waitingNow.Add(^uint64(0)) // minus 1
		case <-deadline.C:
			s.stats.waitingNow.Add(^uint64(0))
			w.WriteHeader(http.StatusNotModified)
			return nil
		case <-r.Context().Done():
			s.stats.waitingNow.Add(^uint64(0))
			return r.Context().Err()
		}
	}
}

// sameFiles tells whether a boot's box has what it is to have. What a box that
// belongs to no node has does not change.
func (s *Server) sameFiles(ctx context.Context, b dsas.Boot, tag string) (bool, error) {
	if b.Node != "" {
		now, err := s.Renderer.Tag(ctx, b.Node, b.Role, b.Image)
		return now == tag, err
	}
	node, err := s.nodeOf(ctx, b)
	if err != nil {
		return false, err
	}
	rendered, err := s.Renderer.Render(ctx, node, b.Role, b.Image)
	return rendered.Tag == tag, err
}

// writeSigned answers a signed request with JSON that the node can tell from
// anybody else's: it will write as root what stands there.
func writeSigned(w http.ResponseWriter, r *http.Request, b dsas.Boot, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("answer %s: %w", b.Node, err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set(sign.HeaderReply, sign.Reply(b.Session, r.Header.Get(sign.HeaderNonce), body))
	w.Write(body) // the reader went away: nothing to do
	return nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // the reader went away: nothing to do
}
