package rootfs

// The bounds of what is fetched ahead, for tests.
const (
	Block       = block
	AheadBlocks = aheadBlocks
	AheadEach   = aheadEach
	AheadParts  = aheadParts
)
