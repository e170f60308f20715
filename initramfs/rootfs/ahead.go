package rootfs

import (
	"context"
	"sync"
)

const (
	// block is the unit in which content travels through a Fetch.
	block = 256 << 10
	// aheadBlocks bounds what of later parts waits in memory, over all of
	// them (4 MiB); aheadEach what waits of one, so that it is not all the next's.
	aheadBlocks = 16
	aheadEach   = 8
	// aheadParts is how many parts, and connections, may be ahead of the one
	// that is unpacked.
	aheadParts = 3
)

// ahead fetches the beginnings of the parts that come next while another is
// unpacked. One stream fills a link; what it does not do is fill it at the seams,
// where a new request goes out only when the last part is on disk. A
// part is asked for by a Range of just what there is room for, so that no
// connection stands idle meanwhile and looks to the server like a slow reader.
type ahead struct {
	ctx    context.Context
	cancel context.CancelFunc
	o      Options
	pool   *pool
	wg     sync.WaitGroup

	mu    sync.Mutex
	room  int // blocks that may still be promised
	turn  int // the part whose turn it is: fetched to its end
	next  int // the first part that was not begun
	heads []*head
}

// head is a part whose beginning is, or is being, fetched.
type head struct {
	src    *blob
	blocks chan []byte // in order; closed when no more comes without asking
}

func newAhead(ctx context.Context, o Options, blocks *pool) *ahead {
	a := &ahead{o: o, pool: blocks, room: aheadBlocks, heads: make([]*head, len(o.Manifest.Parts))}
	a.ctx, a.cancel = context.WithCancel(ctx)
	return a
}

// stop ends all transfers that are ahead, and waits for them.
func (a *ahead) stop() {
	a.cancel()
	a.wg.Wait()
}

// take says that it is part i's turn, and gives what there is of it.
func (a *ahead) take(i int) *head {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn = i
	if a.heads[i] == nil {
		h := &head{src: newBlob(a.ctx, a.o, i, a.o.Manifest.Parts[i]), blocks: make(chan []byte)}
		close(h.blocks)
		a.heads[i] = h
	}
	a.next = max(a.next, i+1)
	a.begin()
	return a.heads[i]
}

// begin starts what may be started. a.mu is held.
func (a *ahead) begin() {
	for a.room > 0 && a.next < len(a.heads) && a.next <= a.turn+aheadParts {
		part := a.o.Manifest.Parts[a.next]
		blocks := min(int((part.Size+block-1)/block), aheadEach, a.room)
		a.room -= blocks
		h := &head{src: newBlob(a.ctx, a.o, a.next, part), blocks: make(chan []byte, blocks)}
		h.src.until = min(part.Size, int64(blocks)*block)
		a.heads[a.next] = h
		a.next++
		a.wg.Go(func() { a.fill(h, blocks) })
	}
}

// fill fetches a part's beginning. An error is left in h.src, for the turn of
// the part.
func (a *ahead) fill(h *head, blocks int) {
	defer close(h.blocks)
	defer h.src.close()
	for used := range blocks {
		buf := a.pool.get()
		n, err := readFull(h.src, buf)
		if n > 0 {
			h.blocks <- buf[:n] // has room for all
		} else {
			a.put(buf)
		}
		if err != nil {
			a.giveBack(blocks - used - 1)
			return
		}
	}
}

// put takes a block back that nobody uses any more.
func (a *ahead) put(buf []byte) {
	a.pool.put(buf)
	a.giveBack(1)
}

// giveBack takes back room that was promised and not needed.
func (a *ahead) giveBack(blocks int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.room += blocks
	a.begin()
}

// feed passes a part on as it comes: first what was fetched ahead, in its own
// blocks, then the rest by count blocks of the pipeline's. progress hears of
// every block: bytes so far.
func (p *pipeline) feed(a *ahead, h *head, count int, progress func(bytes int64)) <-chan chunk {
	out := make(chan chunk, count)
	p.wg.Go(func() {
		var sent int64
		send := func(c chunk) bool {
			select {
			case out <- c:
			case <-p.ctx.Done():
				return false
			}
			sent += int64(len(c.buf))
			progress(sent)
			return c.err == nil
		}
		for more := true; more; {
			var buf []byte
			select {
			case buf, more = <-h.blocks:
			case <-p.ctx.Done():
				return
			}
			if more && !send(chunk{buf: buf, free: a.put}) {
				return
			}
		}
		// The transfer is ours alone now: the one who had it is gone.
		h.src.ctx, h.src.until = p.ctx, h.src.part.Size
		p.read(h.src, count, send)
	})
	return out
}
