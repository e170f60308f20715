package imagebuild

// What the initramfs holds: what a node needs to reach its server and its
// disks, whatever box it is.

// initramfsFolders are taken whole (below /lib/modules/RELEASE/kernel).
var initramfsFolders = []string{
	"drivers/net/ethernet/", "drivers/net/phy/", "drivers/net/bonding/",
}

var initramfsModules = []string{
	// Network, beside the folders: virtual machines' NICs, adapters on USB as
	// they are met in servers (also a BMC's own), VLANs.
	"virtio_net", "vmxnet3", "hv_netvsc", "xen_netfront",
	"r8152", "ax88179_178a", "asix", "aqc111", "cdc_ether", "cdc_ncm", "cdc_eem", "rndis_host", "lan78xx", "smsc95xx", "smsc75xx",
	"8021q", "af_packet", "bonding", "dummy",
	// USB, for those and for the rescue shell's keyboard.
	"xhci_pci", "ehci_pci", "ohci_pci", "uhci_hcd", "usbhid", "hid_generic", "usb_storage", "uas",
	// Virtual machines.
	"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "virtio_rng", "virtio_balloon", "virtio_console",
	"hv_vmbus", "hv_storvsc", "hv_utils", "xen_blkfront", "vmw_pvscsi", "vmw_balloon",
	"qemu_fw_cfg", "pvpanic_pci",
	// Disks and their controllers.
	"ahci", "ata_piix", "ata_generic", "nvme", "sd_mod", "sr_mod", "sg",
	"mpt3sas", "megaraid_sas", "smartpqi", "hpsa", "aacraid", "mpi3mr", "pm80xx", "vmd",
	"raid0", "raid1", "md_mod", "dm_mod", "loop",
	// File systems and what they ask the kernel for by name. xfs (0.9 MiB) and
	// the rest of md and dm are in the images, whose modules a node has when it
	// mounts disks.
	"overlay", "ext4", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8",
	"crc32c_generic", "crc32c_intel", "crct10dif_generic", "crct10dif_pclmul", "crc64_rocksoft", "efivarfs",
	// Watchdogs, BMC, power button, entropy.
	"iTCO_wdt", "i6300esb", "sp5100_tco", "wdat_wdt", "hpwdt", "softdog", "ipmi_si", "ipmi_devintf", "ipmi_watchdog", "button",
	"intel_rng", "amd_rng", "tpm_tis", "tpm_crb",
}

// What images hold: the NIC drivers are loaded by then and stay, so they are
// left out; what services and disks ask for later is in.

// imageFolders are taken whole.
var imageFolders = []string{
	"net/netfilter/", "net/ipv4/netfilter/", "net/ipv6/netfilter/", "net/bridge/netfilter/",
	"fs/nfs/", "fs/nfsd/", "fs/nfs_common/", "fs/lockd/",
}

var imageModules = []string{
	// Disks.
	"ahci", "ata_piix", "nvme", "sd_mod", "sr_mod", "sg", "mpt3sas", "megaraid_sas", "smartpqi", "hpsa", "aacraid", "mpi3mr",
	"virtio_blk", "virtio_scsi", "vmw_pvscsi", "hv_storvsc", "xen_blkfront", "usb_storage", "uas",
	"raid0", "raid1", "raid10", "raid456", "linear", "md_mod",
	"dm_mod", "dm_crypt", "dm_mirror", "dm_multipath", "dm_raid", "dm_snapshot", "dm_thin_pool", "loop", "nbd", "drbd", "zram",
	// File systems.
	"ext4", "xfs", "vfat", "isofs", "overlay", "fuse", "autofs4", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8",
	"crc32c_generic", "crc32c_intel", "crct10dif_generic", "crct10dif_pclmul", "efivarfs",
	"auth_rpcgss", "rpcsec_gss_krb5", "sunrpc", "configfs",
	// Network.
	"8021q", "bonding", "bridge", "br_netfilter", "dummy", "veth", "macvlan", "tun", "vxlan", "wireguard", "ipip", "sit", "ip_gre", "ip_tunnel",
	"tcp_bbr", "sch_fq", "sch_fq_codel", "sch_htb", "sch_ingress", "cls_u32", "cls_fw", "act_mirred", "ifb", "tls", "af_packet", "packet_diag", "tcp_diag", "udp_diag", "inet_diag", "unix_diag",
	// Virtual machines, watchdogs, BMC, keys.
	"virtio_pci", "virtio_rng", "virtio_balloon", "virtio_console", "virtio_net", "hv_utils", "vmw_balloon",
	"iTCO_wdt", "i6300esb", "sp5100_tco", "wdat_wdt", "hpwdt", "softdog", "ipmi_si", "ipmi_devintf", "ipmi_watchdog", "tpm_tis", "tpm_crb",
	"coretemp", "k10temp", "acpi_ipmi",
}
