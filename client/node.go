package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"dsas"
	"dsas/client/sign"
)

// ErrNoKey: a signed request was wanted before Config gave the session key.
var ErrNoKey = errors.New("no session key yet: take the node config first")

const (
	maxNodeAnswer = 32 << 20 // bytes of a node config or of rendered files
	maxErrorText  = 4 << 10

	nodeRequestTime = 30 * time.Second
	// clockSlack: an HTTP Date has whole seconds, and the answer travelled.
	clockSlack = 5 * time.Second
)

// Node is a node's side of the boot listener. It is safe for concurrent use.
type Node struct {
	// HTTP sends the requests; NewNode sets one without a proxy and without
	// redirects (a signature holds for one URL).
	HTTP *http.Client

	server string
	boot   string

	mu  sync.Mutex
	key []byte
	// The server's time was base when our clock read at. at keeps its
	// monotonic reading: setting the wall clock in between changes nothing.
	at, base time.Time
}

// NodeState is what a Node must carry over an exec. It holds the session key:
// write it 0600, never log it.
type NodeState struct {
	Server string        `json:"server"`
	Boot   string        `json:"boot"`
	Key    []byte        `json:"key"`
	Offset time.Duration `json:"offset"` // server's clock minus our wall clock, at the time of State
}

// NewNode talks to the boot listener at server ("http://10.77.0.1:8080") for
// the boot with this id.
func NewNode(server string, boot string) *Node {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	return &Node{
		server: strings.TrimRight(server, "/"),
		boot:   boot,
		HTTP: &http.Client{
			Transport: &http.Transport{
				DialContext:         dialer.DialContext,
				MaxIdleConnsPerHost: 4,
				IdleConnTimeout:     60 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// RestoreNode is NewNode after an exec.
func RestoreNode(s NodeState) *Node {
	n := NewNode(s.Server, s.Boot)
	n.key = s.Key
	now := time.Now()
	n.at, n.base = now, now.Add(s.Offset)
	return n
}

// State is what RestoreNode wants.
func (n *Node) State() NodeState {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	// Round(0) drops the monotonic reading: the difference wanted is to the
	// wall clock, the only one that the next program can read.
	offset := n.serverTime(now).Round(0).Sub(now.Round(0))
	return NodeState{Server: n.server, Boot: n.boot, Key: n.key, Offset: offset}
}

// ServerTime is what the server's clock read when ours read t; t itself while
// nothing is known of the server's clock.
func (n *Node) ServerTime(t time.Time) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.serverTime(t)
}

func (n *Node) serverTime(t time.Time) time.Time {
	if n.at.IsZero() {
		return t
	}
	return n.base.Add(t.Sub(n.at))
}

func (n *Node) setServerTime(server time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at, n.base = time.Now(), server.Round(0)
}

// Config takes the node config for the boot token, keeps its session key for
// the requests that follow, and learns the server's clock from it.
// dsas.ErrDenied: the token is not, or no longer, worth anything.
func (n *Node) Config(ctx context.Context, token string) (dsas.NodeConfig, error) {
	var cfg dsas.NodeConfig
	ctx, cancel := context.WithTimeout(ctx, nodeRequestTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.server+"/node/config", nil)
	if err != nil {
		return cfg, fmt.Errorf("get node config: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set(sign.HeaderBoot, n.boot)
	if _, err := n.do(req, &cfg); err != nil {
		return dsas.NodeConfig{}, fmt.Errorf("get node config: %w", err)
	}
	if len(cfg.SessionKey) == 0 {
		return dsas.NodeConfig{}, fmt.Errorf("get node config: no session key in the answer of %s: %w", n.server, dsas.ErrInvalid)
	}
	n.mu.Lock()
	n.key = cfg.SessionKey
	n.mu.Unlock()
	if !cfg.Time.IsZero() {
		n.setServerTime(cfg.Time)
	}
	return cfg, nil
}

// PostEvents posts events in this order. Times in them are the server's (see
// ServerTime). After a lost reply the same events may be posted again.
func (n *Node) PostEvents(ctx context.Context, events []dsas.Event) error {
	if len(events) == 0 {
		return nil
	}
	body, err := json.Marshal(events)
	if err != nil {
		return fmt.Errorf("post events: %w", err)
	}
	if _, err := n.signed(ctx, http.MethodPost, "/node/events", body, nodeRequestTime, nil); err != nil {
		return fmt.Errorf("post events: %w", err)
	}
	return nil
}

// Rendered is what a running node is to have now.
type Rendered struct {
	Tag   string      `json:"tag"`   // names this state
	Files []dsas.File `json:"files"` // rendered templates
	Conf  string      `json:"conf"`  // text of /etc/dsas.conf
}

// Files asks for the rendered files and dsas.conf as soon as they differ from
// those that tag names, and for wait at most. changed is false when they still
// are the same. The answer must be signed with the session key: what comes of
// it is written as root.
func (n *Node) Files(ctx context.Context, tag string, wait time.Duration) (r Rendered, changed bool, err error) {
	q := url.Values{"tag": {tag}, "wait": {wait.String()}}
	status, err := n.signed(ctx, http.MethodGet, "/node/files?"+q.Encode(), nil, wait+nodeRequestTime, &r)
	if err != nil {
		return Rendered{}, false, fmt.Errorf("get rendered files: %w", err)
	}
	return r, status == http.StatusOK, nil
}

// Heartbeat says that the node lives.
func (n *Node) Heartbeat(ctx context.Context) error {
	if _, err := n.signed(ctx, http.MethodPost, "/node/heartbeat", nil, nodeRequestTime, nil); err != nil {
		return fmt.Errorf("post heartbeat: %w", err)
	}
	return nil
}

func (n *Node) signed(ctx context.Context, method, path string, body []byte, limit time.Duration, into any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	n.mu.Lock()
	key, now := n.key, n.serverTime(time.Now())
	n.mu.Unlock()
	if len(key) == 0 {
		return 0, ErrNoKey
	}
	req, err := http.NewRequestWithContext(ctx, method, n.server+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set(sign.HeaderBoot, n.boot)
	sign.Sign(req, key, body, now, sign.NewNonce())
	return n.do(req, into)
}

func (n *Node) sessionKey() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.key
}

// do sends req, decodes a 200 into into, and turns other answers but 204 and
// 304 into errors.
func (n *Node) do(req *http.Request, into any) (int, error) {
	resp, err := n.HTTP.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n.followClock(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		if into == nil {
			return resp.StatusCode, nil
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxNodeAnswer))
		if err != nil {
			return 0, fmt.Errorf("read answer: %w", err)
		}
		// Only the config is taken unsigned: it brings the key.
		if nonce := req.Header.Get(sign.HeaderNonce); nonce != "" {
			if err := sign.VerifyReply(n.sessionKey(), nonce, body, resp.Header.Get(sign.HeaderReply)); err != nil {
				return 0, fmt.Errorf("read answer: %w", err)
			}
		}
		if err := json.Unmarshal(body, into); err != nil {
			return 0, fmt.Errorf("read answer: %w", err)
		}
		return resp.StatusCode, nil
	case http.StatusNoContent, http.StatusNotModified:
		return resp.StatusCode, nil
	}
	return resp.StatusCode, nodeError(resp)
}

// followClock keeps our idea of the server's clock, since a node runs for
// months and a crystal drifts: without it every signature would be refused
// some day, for good.
func (n *Node) followClock(resp *http.Response) {
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return
	}
	if diff := n.ServerTime(time.Now()).Sub(date); diff > clockSlack || diff < -clockSlack {
		n.setServerTime(date)
	}
}

// nodeError turns an error answer into one of the root package's sentinels,
// so that a caller tells with errors.Is what to do about it.
func nodeError(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText))
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &said) != nil || said.Error == "" {
		said.Error = strings.TrimSpace(string(text))
	}
	err := fmt.Errorf("%s answered %s: %.300q", resp.Request.URL.Path, resp.Status, said.Error)
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: %w", err, dsas.ErrInvalid)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w", err, dsas.ErrDenied)
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w: %w", err, dsas.ErrNotFound)
	case http.StatusConflict:
		return fmt.Errorf("%w: %w", err, dsas.ErrConflict)
	}
	return err
}
