package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"dsas"
	"dsas/roles"
	"dsas/server/httpboot"
	"dsas/server/store"
)

// renderer makes what one node is to be out of the state and the roles: the
// one place where nodes, sites and role definitions meet.
type renderer struct {
	cfg     *config
	store   *store.Store
	roles   *roles.Set
	rel     *releases
	subnets []dsas.Subnet
	fleet   fleetCache
	*changeHub

	frozen sync.Map // release: roles.Definition
}

// definition gives the role's definition that a release was built with. Where it
// has none, or is gone, it is the server's own.
func (r *renderer) definition(role string, release dsas.Digest) (roles.Definition, error) {
	if def, ok := r.frozen.Load(release); ok {
		return def.(roles.Definition), nil
	}
	rel, err := r.rel.Release(release)
	if errors.Is(err, dsas.ErrNotFound) || err == nil && len(rel.Definition) == 0 {
		return r.roles.Get(role)
	}
	if err != nil {
		return roles.Definition{}, err
	}
	def, err := roles.Thaw(rel.Definition, string(release))
	if err != nil {
		return def, fmt.Errorf("release %s: %w", rel.Name(), err)
	}
	r.frozen.Store(release, def)
	return def, nil
}

// role gives a role as a release has it.
func (r *renderer) role(name string, release dsas.Digest) (dsas.Role, error) {
	def, err := r.definition(name, release)
	return def.Role, err
}

// Render implements httpboot.Renderer.
func (r *renderer) Render(ctx context.Context, node dsas.Node, role string, release dsas.Digest) (httpboot.Rendered, error) {
	def, err := r.definition(role, release)
	if err != nil {
		return httpboot.Rendered{}, err
	}
	f, err := r.fleet.get(ctx, r.store)
	if err != nil {
		return httpboot.Rendered{}, err
	}
	return r.renderFrom(f, node, def)
}

func (r *renderer) renderFrom(f *fleet, node dsas.Node, def roles.Definition) (out httpboot.Rendered, err error) {
	in := r.input(f, node, def)
	out.Role = def.Role
	if out.Conf, err = roles.Conf(def, in); err != nil {
		return httpboot.Rendered{}, err
	}
	if out.Files, err = roles.Render(def, in); err != nil {
		return httpboot.Rendered{}, err
	}
	out.Tag = tagOf(out.Conf, out.Files)
	return out, nil
}

// tagOf names the content of dsas.conf and files.
func tagOf(conf string, files []dsas.File) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	enc.Encode(conf)
	enc.Encode(files)
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// input gathers what templates may speak of. It does not change f, and neither
// do templates.
func (r *renderer) input(f *fleet, node dsas.Node, def roles.Definition) roles.Input {
	in := roles.Input{Node: node, Role: def.Role, Sites: f.visible(def), Nodes: f.peers[def.Role.Name], Settings: roles.Settings{
		Bond: r.cfg.bondParameter(), Variables: r.cfg.Variables,
	}}
	for _, s := range r.subnets {
		if s.Prefix.Contains(node.Address.Addr()) {
			in.Subnet = s
			in.Settings.Bond = cmp.Or(s.Bond, in.Settings.Bond)
		}
	}
	return in
}

func peer(n dsas.Node) roles.Peer {
	return roles.Peer{Name: n.Name, Address: n.Address.Addr(), Role: n.Role}
}

// serving gives the nodes that answer for a site now: those that said so, and
// nothing else since. A node that is lost to us, or for which somebody asks for
// a boot script, may serve all the same: the balancer's own health check decides
// about it.
func serving(s dsas.Site, nodes []dsas.Node, serves map[string]string) []roles.Peer {
	var out []roles.Peer
	for _, n := range nodes {
		if s.Role != "" && serves[n.Name] == s.Role {
			out = append(out, peer(n))
		}
	}
	return out
}

// Secrets implements httpboot.Renderer: the node's host key, which stays the
// same over boots, and who may log in. A stranger has a new key each time,
// whatever a node is called, and not the nodes' console password: with
// discovery on, whoever plugs a box in could try passwords on it at leisure.
func (r *renderer) Secrets(ctx context.Context, node dsas.Node, stranger bool) (files []dsas.File, err error) {
	var key []byte
	if stranger {
		key, err = newHostKey(node.Name)
	} else {
		key, err = r.hostKey(ctx, node.Name)
	}
	if err != nil {
		return nil, err
	}
	pub, err := publicKey(key)
	if err != nil {
		return nil, fmt.Errorf("host key of %s: %w", node.Name, err)
	}
	files = []dsas.File{
		{Path: "/etc/ssh/ssh_host_ed25519_key", Mode: 0o600, Content: key},
		{Path: "/etc/ssh/ssh_host_ed25519_key.pub", Mode: 0o644, Content: []byte(pub + "\n")},
	}
	if p := r.cfg.AuthorizedKeys; p != "" {
		keys, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("authorized keys: %w", err)
		}
		files = append(files, dsas.File{Path: "/root/.ssh/authorized_keys", Mode: 0o600, Content: keys})
	}
	if p := r.cfg.ConsolePasswordFile; p != "" && !stranger {
		hash, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("console password: %w", err)
		}
		files = append(files, dsas.File{Path: "/etc/dsas/console-password", Mode: 0o600, Content: hash})
	}
	return files, nil
}

func (r *renderer) hostKey(ctx context.Context, node string) ([]byte, error) {
	return r.store.HostKey(ctx, node, func() ([]byte, error) { return newHostKey(node) })
}

func newHostKey(comment string) ([]byte, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// publicKey gives the line that belongs into known_hosts, without the name.
func publicKey(private []byte) (string, error) {
	s, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))), nil
}

// checkKeys refuses an authorized keys file that sshd would not read, at the
// start and not when the first node wants it.
func checkKeys(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("authorized keys: %w; the service sees neither /root nor /home: copy it to %s/authorized_keys, readable for the server's user, and name that", err, defaultConfigDir)
	}
	if err != nil {
		return fmt.Errorf("authorized keys: %w", err)
	}
	for i, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil {
			return fmt.Errorf("authorized keys %s line %d: %w: %w", path, i+1, err, dsas.ErrInvalid)
		}
	}
	return nil
}

// defaultKeys picks root's own public keys where none were configured, so
// that `dsas ssh` works out of the box.
func defaultKeys() string {
	for _, p := range []string{"/etc/dsas/authorized_keys", os.ExpandEnv("$HOME/.ssh/authorized_keys")} {
		if st, err := os.Stat(p); err == nil && st.Size() > 0 {
			return p
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			continue
		}
	}
	return ""
}
