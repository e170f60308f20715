package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"dsas"
	"dsas/client"
	"dsas/internal/signing"
	"dsas/lab/load"
	"dsas/server/blobs"
)

// poolRange is the part of the arena's subnet that is for unknown MACs; nodes
// have addresses below it.
const (
	poolFirst = "10.66.128.0"
	poolLast  = "10.66.255.250"
)

// nodeAddr gives the address of the n-th node, from 10.66.16.0 on.
func nodeAddr(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 66, 16 + byte(n/250), 1 + byte(n%250)})
}

// ours is a `dsas serve` in the arena.
type ours struct {
	*program
	state string
	api   *client.Client
}

// ourState makes a state folder with nodes, which have role web and a published
// image of that many bytes.
func (b *bench) ourState(ctx context.Context, a *arena, name string, nodes int, imageBytes int64) (string, error) {
	state := filepath.Join(a.dir, name)
	if err := os.MkdirAll(state, 0o755); err != nil {
		return "", err
	}
	if err := publish(ctx, state, imageBytes); err != nil {
		return "", fmt.Errorf("publish image: %w", err)
	}
	if nodes == 0 {
		return state, nil
	}
	o, err := b.startOurs(ctx, a, state)
	if err != nil {
		return "", err
	}
	defer o.stop()
	list := make([]dsas.Node, nodes)
	for i := range list {
		list[i] = dsas.Node{Name: fmt.Sprintf("n%d", i), NICs: []dsas.NIC{{MAC: load.MAC(i)}}, Address: netip.PrefixFrom(nodeAddr(i), 16), Role: "web"}
	}
	begin := time.Now()
	if _, err := o.api.AddNodes(ctx, list, false); err != nil {
		return "", fmt.Errorf("add nodes: %w", err)
	}
	b.say("adding %d nodes took %s", nodes, time.Since(begin).Round(time.Millisecond))
	return state, nil
}

// publish puts a boot set and an image of role web into a state folder: bytes
// that nobody can boot, of the sizes that matter.
func publish(ctx context.Context, state string, imageBytes int64) error {
	s, err := blobs.Open(filepath.Join(state, "images"))
	if err != nil {
		return err
	}
	part := func(title string, size int64) (dsas.Part, error) {
		data := make([]byte, size)
		rand.Read(data)
		d, n, err := s.Put(ctx, bytes.NewReader(data))
		return dsas.Part{Title: title, Digest: d, DiffID: d, Size: n}, err
	}
	kernel, err1 := part("kernel", 8<<20)
	initramfs, err2 := part("initramfs", 16<<20)
	image, err3 := part("files", max(imageBytes, 1))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	r, err := s.AddRelease(ctx, dsas.Release{Role: "web", Boot: dsas.BootSet{Release: "0-bench", Kernel: kernel, Initramfs: initramfs},
		Manifest: dsas.Manifest{Parts: []dsas.Part{image}}})
	if err != nil {
		return err
	}
	// The server publishes nothing that is not signed.
	keys := signing.Folder(filepath.Join(state, "keys"))
	if _, err := keys.New(); err != nil {
		return err
	}
	signers, err := keys.Signers()
	if err != nil {
		return err
	}
	text, err := signers[0].Sign(r.Signed.Manifest, r.Name(), time.Now())
	if err != nil {
		return err
	}
	if err := s.Sign(ctx, &r, signers[0].Key().KeyID(), text); err != nil {
		return err
	}
	return s.Propose(r.ID)
}

// startOurs starts the built program on a state folder and waits until its
// operators' socket answers.
func (b *bench) startOurs(ctx context.Context, a *arena, state string, more ...string) (*ours, error) {
	config := filepath.Join(state, "dsas.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "keys: %s\nnoConflictCheck: true # as the peers: dnsmasq --no-ping\nsubnets:\n- prefix: %s\n  server: %s\n  pool: %s-%s\n", filepath.Join(state, "keys"), subnetPrefix, serverAddr, poolFirst, poolLast), 0o644); err != nil {
		return nil, err
	}
	// A socket's path is short (unix(7)), a checkout's may not be.
	dir, err := os.MkdirTemp("", "benchnet")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "sock")
	args := append([]string{"serve", "--config", config, "--state", state, "--socket", socket, "--roles-dir", filepath.Join(state, "roles"),
		"--listen", "127.0.0.1:8443", "--interface", linkName, "--log-level", "info"}, more...)
	if b.profile != "" { // the last turn's is what stays
		args = append(args, "--cpu-profile", filepath.Join(b.profile, "dsas.pprof"))
	}
	p, err := a.start(ctx, b.bin(), args...)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	o := &ours{program: p, state: state}
	if o.api, err = client.New(socket, "", client.Options{}); err == nil {
		err = p.until(ctx, "start dsas serve", func() bool { _, err := o.api.Status(ctx); return err == nil })
	}
	if err != nil {
		p.stop()
		os.RemoveAll(dir)
		return nil, err
	}
	go func() { <-p.gone; os.RemoveAll(dir) }()
	return o, nil
}
