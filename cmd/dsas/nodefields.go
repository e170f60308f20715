package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"dsas"
)

// nodeFields are the flags that say what a node is, for node add and node set.
// A flag that was not given is nil.
type nodeFields struct {
	MAC             []string `name:"mac" help:"MAC of a NIC; the first is eth0. Repeat it for more." placeholder:"MAC"`
	Role            *string  `help:"Role to boot; none boots nothing."`
	Address         *string  `help:"Reserved address; the default is a free one of the subnet." placeholder:"IP"`
	Loader          *string  `help:"Boot loader: auto, ipxe, pxelinux, grub for UEFI with Secure Boot on, or nbp for boxes whose ROM's iPXE is of no use."`
	Menu            []string `help:"Roles that may be picked at the node's boot loader, for one boot each; none: no menu." placeholder:"ROLE"`
	ClientID        *string  `name:"client-id" help:"DHCP client identifier the node is known by beside its MACs: hex, or text:WORD." placeholder:"ID"`
	Disk            []string `help:"Block device by its dsas.conf key. Repeat it for more." placeholder:"DBDEVICE=/dev/vda" sep:"none"`
	Interface       []string `help:"Further address on a device; bond0.2 is VLAN 2. Repeat it for more." placeholder:"bond0.2=192.0.2.5/24"`
	BMC             *string  `name:"bmc" help:"Power control." placeholder:"ipmi://USER@ADDR"`
	BMCPasswordFile string   `name:"bmc-password-file" help:"File with the BMC's password; the default is to ask for it." placeholder:"FILE"`
	ConfFile        string   `help:"File with lines for the end of the node's dsas.conf (- reads stdin); they are checked as the node will read them." placeholder:"FILE"`
}

const maxSecretFile = 4 << 10 // bytes

// none is how a flag says that there shall be none of it.
const none = "none"

// patch turns the flags into a merge patch of a dsas.Node.
func (f *nodeFields) patch(a *app) (map[string]any, error) {
	for name, v := range map[string]*string{"role": f.Role, "address": f.Address, "client-id": f.ClientID, "loader": f.Loader} {
		// More likely a variable of a script that is not set than a wish.
		if v != nil && *v == "" {
			return nil, usagef("--%s: its value is empty; leave it out, or give none to take away what there is", name)
		}
	}
	p := map[string]any{}
	if len(f.MAC) > 0 {
		var nics []dsas.NIC
		for _, s := range f.MAC {
			m, err := dsas.ParseMAC(s)
			if err != nil {
				return nil, usageError{err: err}
			}
			nics = append(nics, dsas.NIC{MAC: m})
		}
		p["nics"] = nics
	}
	if f.Role != nil {
		p["role"] = orNull(*f.Role, "")
	}
	if f.Address != nil {
		p["address"] = orNull(*f.Address, "auto")
	}
	if f.ClientID != nil {
		p["clientId"] = orNull(*f.ClientID, "")
		if p["clientId"] != nil {
			id, err := dsas.ParseClientID(*f.ClientID)
			if err != nil {
				return nil, usageError{err: err}
			}
			p["clientId"] = string(id)
		}
	}
	if f.Loader != nil {
		p["loader"] = orNull(*f.Loader, "auto")
	}
	if len(f.Menu) > 0 {
		list := []string{}
		if len(f.Menu) != 1 || f.Menu[0] != none {
			list = append(list, f.Menu...)
		}
		p["menu"] = list
	}
	if len(f.Disk) > 0 {
		disks := map[string]any{}
		for _, s := range f.Disk {
			key, dev, ok := strings.Cut(s, "=")
			if !ok {
				return nil, usagef("--disk %s: write it as DBDEVICE=/dev/vda; DBDEVICE= takes it away", s)
			}
			disks[key] = orNull(dev, "")
		}
		p["disks"] = disks
	}
	if len(f.Interface) > 0 {
		list, err := parseInterfaces(f.Interface)
		if err != nil {
			return nil, err
		}
		p["interfaces"] = list
	}
	if f.ConfFile != "" {
		b, err := a.readFile(f.ConfFile, maxInputFile)
		if err != nil {
			return nil, fmt.Errorf("read conf: %w", err)
		}
		p["conf"] = orNull(string(b), "")
	}
	return p, f.patchBMC(a, p)
}

// orNull takes away what is empty, "none" or the word for the default.
func orNull(s, def string) any {
	if s == "" || s == none || s == def {
		return nil
	}
	return s
}

func (f *nodeFields) patchBMC(a *app, p map[string]any) error {
	if f.BMC != nil && *f.BMC == none {
		p["bmc"] = nil
		return nil
	}
	bmc := map[string]any{}
	var b *dsas.BMC
	if f.BMC != nil {
		var err error
		if b, err = parseBMC(*f.BMC); err != nil {
			return err
		}
		bmc["kind"], bmc["address"], bmc["user"] = b.Kind, b.Address, orNull(b.User, "")
	}
	switch {
	case f.BMCPasswordFile != "":
		password, err := a.readSecret(f.BMCPasswordFile)
		if err != nil {
			return err
		}
		bmc["password"] = password
	case b != nil:
		password, err := a.askSecret(fmt.Sprintf("Password of %s (empty: none): ", clean(bmcText(b))))
		if err != nil {
			return err
		}
		if password != "" {
			bmc["password"] = password
		}
	}
	if len(bmc) > 0 {
		p["bmc"] = bmc
	}
	return nil
}

// readSecret reads a password's file, without the line's end.
func (a *app) readSecret(name string) (string, error) {
	b, err := a.readFile(name, maxSecretFile)
	if err != nil {
		return "", fmt.Errorf("read BMC password: %w", err)
	}
	password := strings.TrimRight(string(b), "\r\n")
	if password == "" || strings.ContainsAny(password, "\r\n") {
		return "", fmt.Errorf("BMC password file %s: want one line", name)
	}
	return password, nil
}

// parseInterfaces reads bond0.2=192.0.2.5/24; a single "none" is an empty list.
func parseInterfaces(texts []string) ([]dsas.Interface, error) {
	list := []dsas.Interface{}
	if len(texts) == 1 && texts[0] == none {
		return list, nil
	}
	for _, s := range texts {
		dev, addr, _ := strings.Cut(s, "=")
		p, err := netip.ParsePrefix(addr)
		if err != nil {
			return nil, usagef("interface %q: write it as bond0.2=192.0.2.5/24", s)
		}
		list = append(list, dsas.Interface{Device: dev, Address: p})
	}
	return list, nil
}

// parseBMC reads ipmi://user@address.
func parseBMC(s string) (*dsas.BMC, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, usagef("bmc %q: write it as ipmi://user@address", s)
	}
	if _, has := u.User.Password(); has {
		return nil, usagef("bmc: a password on a command line can be read by everybody on this machine; use --bmc-password-file")
	}
	return &dsas.BMC{Kind: u.Scheme, Address: u.Host, User: u.User.Username()}, nil
}
