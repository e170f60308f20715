package lab

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dsas"
)

// Firmware is what a node's board starts with.
type Firmware string

// The firmwares: SeaBIOS with QEMU's own NIC ROM, which is iPXE; OVMF with its
// own PXE; OVMF that boots by HTTP alone; and OVMF with Secure Boot on and
// Microsoft's keys enrolled, as boxes are sold.
const (
	BIOS       Firmware = "bios"
	UEFI       Firmware = "uefi"
	UEFIHTTP   Firmware = "uefi-http"
	SecureBoot Firmware = "secureboot"
)

// virtio is the NIC that a node has by default.
const virtio = "virtio-net-pci"

// firmwares lists them.
var firmwares = []Firmware{BIOS, UEFI, UEFIHTTP, SecureBoot}

// ovmf gives the code and the fresh variables of Debian's ovmf package.
func (f Firmware) ovmf() (code, vars string) {
	if f == SecureBoot {
		return "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
	}
	return "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
}

// kvmWorks tells whether hardware virtualization is to be used. A /dev/kvm
// alone proves nothing: without the CPU's flags a guest hangs in it.
func kvmWorks() bool {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !(bytes.Contains(b, []byte(" vmx")) || bytes.Contains(b, []byte(" svm"))) {
		return false
	}
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// qemuArgs gives QEMU's arguments for n. Paths must hold no comma, which QEMU
// would take for the next option; Config.check sees to that.
func (n *Node) qemuArgs() []string {
	s := n.spec
	args := []string{
		"-name", s.Name, "-nodefaults", "-no-user-config",
		"-display", "none", "-vga", "none",
		"-m", strconv.Itoa(s.Memory), "-smp", strconv.Itoa(s.SMP),
		// Stopped until the links are as they should be.
		"-S",
		"-qmp", "unix:" + n.qmpPath() + ",server=on,wait=off",
		// The console: a log that is appended to, and a socket to type at.
		"-chardev", "socket,id=ser0,path=" + n.consolePath() + ",server=on,wait=off,logfile=" + n.serialPath() + ",logappend=on",
		"-serial", "chardev:ser0",
		"-device", "virtio-rng-pci",
		"-device", "i6300esb", "-action", "watchdog=reset",
	}
	accel, machine := "tcg,thread=multi", "pc"
	if s.Firmware != BIOS {
		machine = "q35"
	}
	if s.Firmware == SecureBoot {
		// The variables are written in system management mode alone, which is
		// what keeps an operating system from changing the keys.
		machine = "q35,smm=on"
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	if kvmWorks() {
		accel = "kvm"
	}
	// graphics=off: SeaBIOS and its PXE ROM then use the serial port.
	args = append(args, "-machine", machine+",graphics=off", "-accel", accel, "-cpu", "max")
	switch s.Firmware {
	case BIOS:
		// strict: only what has a bootindex. After the last NIC has failed,
		// start again (ms).
		args = append(args, "-boot", "strict=on,reboot-timeout=2000")
	default:
		code, _ := s.Firmware.ovmf()
		args = append(args,
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+code,
			"-drive", "if=pflash,format=raw,unit=1,file="+n.varsPath())
	}
	if s.Firmware == UEFIHTTP {
		// Else it tries PXE first (OvmfPkg/PlatformPei and NetworkPkg's
		// UefiPxeBcDxe read these).
		for _, v := range []string{"IPv4", "IPv6"} {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/"+v+"PXESupport,string=n")
		}
	}
	for i, mac := range s.MACs {
		dev := fmt.Sprintf("%s,id=nic%d,netdev=net%d,mac=%s,bootindex=%d", s.NICModel, i, i, mac, i+1)
		if s.Firmware != BIOS && s.NICModel == virtio {
			// Without its ROM, which is iPXE, the firmware's own PXE is used. For
			// all but virtio OVMF has no driver, and the ROM is it.
			dev += ",romfile="
		}
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, n.tap(i)),
			"-device", dev)
	}
	if s.Disk > 0 {
		args = append(args,
			"-drive", "if=none,id=disk0,format=raw,cache=writeback,discard=unmap,file="+n.diskPath(),
			"-device", "virtio-blk-pci,drive=disk0,serial="+diskSerial(s.Name))
	}
	return args
}

// diskSerial is the disk's serial number; virtio-blk's has at most 20 bytes.
func diskSerial(name string) string { return name[:min(len(name), 20)] }

// memAvailable gives MemAvailable of /proc/meminfo (proc_meminfo(5)), MiB.
func memAvailable() (int, error) {
	return procMiB("/proc/meminfo", "MemAvailable:")
}

// residentMiB gives what a process has in memory.
func residentMiB(pid int) (int, error) {
	return procMiB(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
}

func procMiB(path, key string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			kib, err := strconv.Atoi(f[1])
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s in %s: %w", key, path, dsas.ErrNotFound)
}
