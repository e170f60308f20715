package disk

// signature is a magic string at one of several places.
type signature struct {
	kind  Kind
	name  string
	magic string
	at    []int64 // offsets in bytes
	// uuid and label are relative to the magic; 0: not known.
	uuid, label int64
	labelLen    int
}

// signatures are those of what can be found on a disk, each from the format's
// own definition in the kernel or in its tools. What is not here is caught by
// its not being zero.
func signatures() []signature {
	pages := func(end int64) []int64 { // a swap header ends its page, whose size differs
		return []int64{4096 - end, 8192 - end, 16384 - end, 65536 - end}
	}
	return []signature{
		{kind: KindEncrypted, name: "LUKS", magic: "LUKS\xba\xbe", at: []int64{0}},
		{kind: KindEncrypted, name: "LUKS", magic: "SKUL\xba\xbe", at: []int64{0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000}},
		{kind: KindEncrypted, name: "BitLocker", magic: "-FVE-FS-", at: []int64{3}},
		{kind: KindLVM, name: "LVM2", magic: "LABELONE", at: []int64{0, 512, 1024, 1536}},
		{kind: KindLVM, name: "LVM1", magic: "HM\x01\x00", at: []int64{0}},
		{kind: KindOther, name: "VDO", magic: "dmvdo001", at: []int64{0}},
		{kind: KindOther, name: "Stratis", magic: "!Stra0tis\x86\xff\x02^\x41rh", at: []int64{516, 4612}},
		{kind: KindOther, name: "bcache", magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", at: []int64{4096 + 24}},
		{kind: KindOther, name: "Ceph BlueStore", magic: "bluestore block device", at: []int64{0}},
		{kind: KindOther, name: "DRBD", magic: "\x83\x74\x02\x6d", at: []int64{-4096 + 60}},
		{kind: KindOther, name: "DRBD", magic: "\x83\x74\x02\x6b", at: []int64{-4096 + 60}},
		{kind: KindSwap, name: "swap", magic: "SWAPSPACE2", at: pages(10), uuid: -4086 + 1036, label: -4086 + 1052, labelLen: 16},
		{kind: KindSwap, name: "swap", magic: "SWAP-SPACE", at: pages(10)},
		{kind: KindSwap, name: "suspended system", magic: "S1SUSPEND", at: pages(10)},
		{kind: KindSwap, name: "suspended system", magic: "S2SUSPEND", at: pages(10)},

		{kind: KindFS, name: "xfs", magic: "XFSB", at: []int64{0}, uuid: 32, label: 108, labelLen: 12},
		{kind: KindFS, name: "btrfs", magic: "_BHRfS_M", at: []int64{65536 + 64}, uuid: -32, label: 0x12b - 64, labelLen: 256},
		// The mark of ext is two bytes only; others' are stronger.
		{kind: KindFS, name: "f2fs", magic: "\x10\x20\xf5\xf2", at: []int64{1024, 5120}},
		{kind: KindFS, name: "erofs", magic: "\xe2\xe1\xf5\xe0", at: []int64{1024}},
		{kind: KindFS, name: "jfs", magic: "JFS1", at: []int64{32768}},
		{kind: KindFS, name: "reiserfs", magic: "ReIsEr", at: []int64{65536 + 52, 8192 + 52, 65536}},
		{kind: KindFS, name: "squashfs", magic: "hsqs", at: []int64{0}},
		{kind: KindFS, name: "cramfs", magic: "\x45\x3d\xcd\x28", at: []int64{0}},
		{kind: KindFS, name: "romfs", magic: "-rom1fs-", at: []int64{0}},
		{kind: KindFS, name: "apfs", magic: "NXSB", at: []int64{32}},
		{kind: KindFS, name: "gfs2", magic: "\x01\x16\x19\x70", at: []int64{65536}},
		{kind: KindFS, name: "ocfs2", magic: "OCFSV2", at: []int64{1024, 2048, 4096, 8192}},
		{kind: KindFS, name: "zfs", magic: "\x0c\xb1\xba\x00\x00\x00\x00\x00", at: zfsUberblocks()},
		{kind: KindFS, name: "zfs", magic: "\x00\x00\x00\x00\x00\xba\xb1\x0c", at: zfsUberblocks()},
		{kind: KindFS, name: "ufs", magic: "\x54\x19\x01\x00", at: []int64{8192 + 1372, 65536 + 1372}},
		{kind: KindFS, name: "ufs2", magic: "\x19\x01\x54\x19", at: []int64{8192 + 1372, 65536 + 1372}},
		{kind: KindFS, name: "ntfs", magic: "NTFS    ", at: []int64{3}},
		{kind: KindFS, name: "exfat", magic: "EXFAT   ", at: []int64{3}},
		{kind: KindFS, name: "vfat", magic: "FAT32   ", at: []int64{82}},
		{kind: KindFS, name: "vfat", magic: "FAT16   ", at: []int64{54}},
		{kind: KindFS, name: "vfat", magic: "FAT12   ", at: []int64{54}},
		{kind: KindFS, name: "iso9660", magic: "CD001", at: []int64{32769}},
		{kind: KindFS, name: "udf", magic: "NSR0", at: []int64{32769, 34817, 36865, 38913}},
		{kind: KindFS, name: "hfs+", magic: "H+\x00\x04", at: []int64{1024}},
		{kind: KindFS, name: "hfs+", magic: "HX\x00\x05", at: []int64{1024}},
		{kind: KindFS, name: "nilfs2", magic: "\x34\x34", at: []int64{1024 + 6}},
		{kind: KindFS, name: "ext", magic: "\x53\xef", at: []int64{1024 + 0x38}, uuid: 0x68 - 0x38, label: 0x78 - 0x38, labelLen: 16},
		{kind: KindFS, name: "minix", magic: "\x7f\x13", at: []int64{1040}},
		{kind: KindFS, name: "minix", magic: "\x8f\x13", at: []int64{1040}},
		{kind: KindFS, name: "minix", magic: "\x68\x24", at: []int64{1040}},
		{kind: KindFS, name: "minix", magic: "\x78\x24", at: []int64{1040}},
	}
}

// zfsUberblocks are the slots of the ring of uberblocks in the first label.
func zfsUberblocks() []int64 {
	var out []int64
	for off := int64(128 << 10); off < 256<<10; off += 1024 {
		out = append(out, off)
	}
	return out
}
