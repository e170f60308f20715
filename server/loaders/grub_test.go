package loaders_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"dsas"
	"dsas/server/loaders"
)

// firmware gives QEMU's arguments for UEFI firmware with variables of its own,
// since it keeps boot entries in them.
func firmware(t *testing.T, code, vars string) []string {
	t.Helper()
	need(t, code, vars)
	b, err := os.ReadFile(vars)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(own, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-device", bios + ",romfile=", "-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + code, "-drive", "if=pflash,format=raw,unit=1,file=" + own}
}

// TestSecureBoot: OVMF with Microsoft's keys takes shim and GRUB. A kernel that
// is not there, and one that nobody signed, are reported and asked for again. The
// rack's tests boot the signed one (lab/e2e, firmware).
func TestSecureBoot(t *testing.T) {
	r := newRack(t, dsas.LoaderGRUB, loaders.SecureBoot)
	need(t, "/boot/ipxe.efi")
	unsigned, err := os.ReadFile("/boot/ipxe.efi")
	if err != nil {
		t.Fatal(err)
	}
	set := dsas.BootSet{Kernel: r.blob(unsigned), Initramfs: r.blob([]byte("none"))}
	missing := set
	missing.Kernel.Digest = "sha256:00000000000000000000000000000000000000000000000000000000000000ff"
	r.store.Publish(missing, "web")
	file := filepath.Join(t.TempDir(), "serial")
	r.qemu(append(firmware(t, "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
		"-machine", "q35,smm=on,graphics=off", "-global", "driver=cfi.pflash01,property=secure,value=on", "-serial", "file:"+file)...)
	r.expect("event dhcp.ack 10.99.0.10, boot file nbp/52-54-00-99-00-01/shimx64.efi", "tftp shimx64.efi", "tftp grubx64.efi", "tftp grub/grub.cfg",
		"tftp grub/52:54:00:99:00:01/boot-x86_64.cfg", "grub failed kernel", "tftp grub/52:54:00:99:00:01/boot-x86_64.cfg", "grub failed kernel")
	r.store.Publish(set, "web")
	r.expect("tftp grub/52:54:00:99:00:01/boot-x86_64.cfg", "tftp grub/52-54-00-99-00-01/blob/"+set.Kernel.Digest.Hex(), "grub failed kernel")
	r.console(file, "dsas: 52:54:00:99:00:01: node w1 boots as web, release web:1.", "dsas: 52:54:00:99:00:01: kernel failed", "trying again in 1 s", "trying again in 2 s", "bad shim signature")
}

// TestGRUBMenu: at Debian's signed GRUB under Secure Boot a role is picked that
// was taken off the list meanwhile: GRUB says so and shows a new menu. What is
// picked there is tried for ever, when its kernel does not load.
func TestGRUBMenu(t *testing.T) {
	r := newRack(t, dsas.LoaderGRUB, loaders.SecureBoot)
	missing := dsas.BootSet{Kernel: r.blob([]byte("k")), Initramfs: r.blob([]byte("none"))}
	missing.Kernel.Digest = "sha256:00000000000000000000000000000000000000000000000000000000000000ff"
	r.store.Publish(missing, "web", "rescue", "inventory", "lb")
	r.setMenu("inventory", "rescue")
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "serial"), filepath.Join(dir, "console")
	r.qemu(append(firmware(t, "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
		"-machine", "q35,smm=on,graphics=off", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-chardev", "socket,id=s,path="+socket+",server=on,wait=off,logfile="+file, "-serial", "chardev:s")...)
	const asks = "tftp grub/52:54:00:99:00:01/"
	r.expect("tftp grub/grub.cfg", asks+"boot-x86_64.cfg")
	r.console(file, "web (assigned", "inventory (for this boot only)", "executed automatically")
	con, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer con.Close()
	go io.Copy(io.Discard, con) // the log has it all
	press := func(key string) {
		t.Helper()
		if _, err := io.WriteString(con, key); err != nil {
			t.Fatal(err)
		}
	}
	r.setMenu("lb", "rescue")
	press("2") // inventory
	r.expect(asks+"boot-x86_64-inventory.cfg", asks+"boot-x86_64.cfg")
	r.console(file, "Role inventory was asked for", "lb (for this boot only)", "executed automatically")
	press("3") // rescue
	r.expect(asks+"boot-x86_64-rescue.cfg", "grub failed kernel", asks+"boot-x86_64-rescue.cfg", "grub failed kernel", asks+"boot-x86_64-rescue.cfg")
}

// TestARM64: an arm64 box gets shim and GRUB of its own architecture, by which
// it is told that there is no kernel for it; and it keeps asking.
func TestARM64(t *testing.T) {
	r := newRack(t, dsas.LoaderAuto, loaders.ARM64)
	need(t, "qemu-system-aarch64")
	r.store.Publish(dsas.BootSet{Kernel: r.blob([]byte("an x86-64 kernel")), Initramfs: r.blob([]byte("none"))}, "web")
	file := filepath.Join(t.TempDir(), "serial")
	r.qemuAs("qemu-system-aarch64", append(firmware(t, "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"), "-machine", "virt", "-serial", "file:"+file)...)
	r.expect("event dhcp.ack 10.99.0.10, boot file nbp/52-54-00-99-00-01/shimaa64.efi", "tftp shimaa64.efi", "tftp grubaa64.efi", "tftp grub/grub.cfg",
		"tftp grub/52:54:00:99:00:01/boot-arm64.cfg", "tftp grub/52:54:00:99:00:01/boot-arm64.cfg")
	r.console(file, "Images are built for x86-64 alone, so there is no", "trying again in 1 s", "trying again in 2 s") // where the line wraps, the screen says
	for _, note := range r.log {
		if note == "http script" || note == "tftp snponly.efi" {
			t.Errorf("it did %q; want nothing of x64", note)
		}
	}
}
