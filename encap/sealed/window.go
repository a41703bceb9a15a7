package sealed

// windowSize is how many counters below the highest one seen may still arrive, in any order.
const windowSize = 8192

// One block more than the window holds: the block that the highest counter lies in may be partly
// ahead of the window (RFC 6479 §2).
const (
	blockBits    = 64
	windowBlocks = windowSize/blockBits + 1
)

// window says which counters of one (session, lane) have been seen: RFC 6479, the anti-replay
// algorithm without bit shifting. It has one writer at a time. Its memory is a ring of bit blocks; a
// block is cleared when the highest counter enters it.
type window struct {
	next   uint64 // one above the highest counter seen; 0 = none seen
	blocks [windowBlocks]uint64
}

// accept marks a counter as seen and returns false if it was before, or is too old to know. Only for
// counters of authentic packets.
func (w *window) accept(counter uint64) bool {
	if counter == ^uint64(0) { // next would wrap
		return false
	}
	block := counter / blockBits
	switch {
	case counter >= w.next:
		last := block // the newest block there is yet; a window that has seen nothing has all clear
		if w.next > 0 {
			last = (w.next - 1) / blockBits
		}
		for i := range min(block-last, windowBlocks) {
			w.blocks[(last+1+i)%windowBlocks] = 0
		}
		w.next = counter + 1
	case w.next-counter > windowSize:
		return false
	}
	bit := uint64(1) << (counter % blockBits)
	if w.blocks[block%windowBlocks]&bit != 0 {
		return false
	}
	w.blocks[block%windowBlocks] |= bit
	return true
}
