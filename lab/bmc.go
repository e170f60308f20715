package lab

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// bmcUser is the virtual BMCs' only user.
const bmcUser = "dsas"

// bmc is a node's virtual BMC: OpenIPMI's ipmi_sim, on the loopback outside
// the namespace, since the server drives power from there.
//
// What was found out about Debian 12's ipmi_sim (OpenIPMI 2.0.33):
//   - It says that it speaks IPMI 2.0 only when the channel has a "guid";
//     without one, lanplus clients give up ("does not support IPMI v2").
//   - It knows cipher suite 3 (SHA-1) and answers 17 (SHA-256) with "invalid
//     authentication algorithm".
//   - chassis_control "PROG" is undocumented. PROG is run by a shell as
//     `PROG get power` (or boot), and must print "power:1"; or as
//     `PROG set power 0`, where any output is a failure. Parameters: power,
//     reset, boot (none, pxe, default, cdrom, bios), shutdown, identify.
//     The simulator serves nobody while PROG runs, so it must be quick.
//   - A power cycle is `set power 0` and, a second later, `set power 1`.
//   - Users are kept below the state folder (-s) and override lan.conf at
//     the next start.
type bmc struct {
	node *Node
	addr string // 127.0.0.1:port
	cmd  *exec.Cmd
	done chan struct{}

	todo chan func(context.Context) error
	quit context.CancelFunc
	idle chan struct{} // closed when the worker has ended
	want want
}

func (l *Lab) startBMC(ctx context.Context, n *Node) (*bmc, error) {
	if err := need("ipmi_sim", "curl"); err != nil {
		return nil, err
	}
	var err error
	// A free port may be taken by another between looking and binding.
	for range 5 {
		var b *bmc
		if b, err = l.tryBMC(ctx, n); err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (l *Lab) tryBMC(ctx context.Context, n *Node) (*bmc, error) {
	port, err := freeUDPPort()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(l.cfg.runDir(), fmt.Sprintf("bmc%d", n.index))
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Join(dir, "state"), 0o700)); err != nil {
		return nil, err
	}
	hook := filepath.Join(dir, "chassis")
	files := map[string]string{
		// Nothing but the answer to a get may reach the simulator; errors
		// go to stderr and the exit code.
		hook: fmt.Sprintf("#!/bin/sh\n# Run by ipmi_sim; the lab does the work.\nexec curl -sSf --max-time 10 --unix-socket %s -d \"$*\" http://lab/bmc/%s\n",
			l.control.path, n.spec.Name),
		filepath.Join(dir, "lan.conf"): fmt.Sprintf(`name "bmc"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 %d
  priv_limit admin
  allowed_auths_admin md5
  guid %x
endlan
chassis_control "%s"
user 2 true "%s" "%s" admin 10 md5
`, port, md5.Sum([]byte(l.cfg.Name+"/"+n.spec.Name)), hook, bmcUser, l.cfg.BMCPassword),
		filepath.Join(dir, "start.cmd"): "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n",
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command("ipmi_sim", "-n", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "start.cmd"), "-s", filepath.Join(dir, "state"))
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	// A hook in flight holds the pipe open; it ends by its own time limit.
	cmd.WaitDelay = time.Second
	if err := l.outside.start(cmd); err != nil {
		return nil, fmt.Errorf("start ipmi_sim: %w", err)
	}
	work, quit := context.WithCancel(context.Background())
	b := &bmc{node: n, addr: fmt.Sprintf("127.0.0.1:%d", port), cmd: cmd, done: make(chan struct{}),
		todo: make(chan func(context.Context) error, 16), quit: quit, idle: make(chan struct{})}
	go func() { cmd.Wait(); close(b.done) }()
	go b.work(work)
	if err := b.ping(ctx); err != nil {
		b.stop()
		return nil, fmt.Errorf("ipmi_sim: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return b, nil
}

func freeUDPPort() (int, error) {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		return 0, fmt.Errorf("free UDP port: %w", err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port, nil
}

// ping waits until the simulator answers an RMCP presence ping (ASF 2.0,
// section 3.2.4.2).
func (b *bmc) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", b.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	// RMCP version 6, no ack, class ASF; ASF's IANA number, presence ping.
	msg := []byte{6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 1, 0, 0}
	buf := make([]byte, 64)
	for {
		// While nobody listens, ICMP makes both calls fail at once.
		c.Write(msg)
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := c.Read(buf); err == nil && n > 8 && buf[8] == 0x40 {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-b.done:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", ctx.Err())
		}
	}
}

func (b *bmc) stop() {
	b.cmd.Process.Kill()
	<-b.done
	b.quit()
	<-b.idle
}
