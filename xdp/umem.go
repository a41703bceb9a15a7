package xdp

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/packet"
)

// umem is the memory that the sockets of one queue pair share with the kernel: equal frames, each
//
//	0 |<- packet.Headroom ->|<- received or sent packet … ->|<- spare ->| size
//
// A frame is named by the offset of its first byte. The kernel puts received packets behind XDP_PACKET_HEADROOM, which
// is packet.Headroom, so headers can be put in front of any packet without moving it.
//
// Every frame is in exactly one place: a fill, RX, TX or completion ring, a sender's free list, a slot of a batch, or
// the reserve. The two directions never exchange frames, so each belongs to its lane and needs no lock:
//
//	lane out:  inside fill → inside RX → slot → outside TX → outside completion → outside free → slot → inside fill
//	lane in:   the same with inside and outside exchanged
type umem struct {
	mem    []byte
	size   uint64 // bytes of a frame, a power of two
	frames int
	fd     int // the first socket bound to it, which others share it through; -1 = none yet

	// A driver receives into the memory without a copy: then no device without zero-copy can share it.
	zeroCopy bool

	mu      sync.Mutex
	reserve []uint64 // frames for batches yet to be made
	users   int      // ports that are open
}

// The kernel's frame sizes: a power of two, from 2048 up to a page (XDP_UMEM_MIN_CHUNK_SIZE).
const (
	smallFrame = 2048
	largeFrame = 4096
)

// maxFrame is the largest Ethernet frame that a chunk of 4096 bytes takes behind its headroom, with room for an AEAD
// tag, and that native XDP accepts on a 4 KB page (headroom 256, struct skb_shared_info 320).
const maxFrame = largeFrame - packet.Headroom - 320

// MaxMTU is the largest MTU of a port's device, bytes.
const MaxMTU = maxFrame - packet.EthernetHeader

// frameSize picks the frame for Ethernet frames of length bytes.
func frameSize(length int) (uint64, error) {
	switch {
	case length <= smallFrame-packet.Headroom-packet.Tailroom:
		return smallFrame, nil
	case length <= maxFrame:
		return largeFrame, nil
	}
	return 0, fmt.Errorf("frames of %d bytes do not fit one AF_XDP chunk (at most %d): lower the MTU to %d, "+
		"or use a mode without AF_XDP", length, maxFrame, MaxMTU)
}

// newUMEM maps the memory. It is never unmapped: a lane may still hold a batch when the port closes. release gives
// its pages back; what is left is address space.
func newUMEM(frames int, size uint64) (*umem, error) {
	mem, err := unix.Mmap(-1, 0, frames*int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d frames of %d bytes: %w", frames, size, err)
	}
	u := &umem{mem: mem, size: size, frames: frames, fd: -1}
	for f := frames - 1; f >= 0; f-- {
		u.reserve = append(u.reserve, uint64(f)*size)
	}
	return u, nil
}

// retain says that one more port uses the memory.
func (u *umem) retain() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.users++
}

// release says that a port is closed. The last one frees the pages.
func (u *umem) release() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users--; u.users > 0 {
		return nil
	}
	return unix.Madvise(u.mem, unix.MADV_DONTNEED)
}

// draw takes n frames out of the reserve; nil if there are fewer.
func (u *umem) draw(n int) []uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n > len(u.reserve) {
		return nil
	}
	k := len(u.reserve) - n
	frames := append([]uint64(nil), u.reserve[k:]...)
	u.reserve = u.reserve[:k]
	return frames
}

// batch makes a batch whose slots own frames, or ordinary memory when the reserve is used up: then packets are copied.
func (u *umem) batch(n int) *packet.Batch {
	frames := u.draw(n)
	if frames == nil {
		return packet.NewBatch(n, int(u.size)-packet.Headroom-packet.Tailroom)
	}
	b := packet.NewBatchOf(n)
	slots := b.Slots()
	for i := range slots {
		slots[i].Exchange(u.frame(frames[i]), packet.Headroom, packet.Headroom)
	}
	return b
}

// frame is a frame's memory.
func (u *umem) frame(f uint64) []byte { return u.mem[f : f+u.size : f+u.size] }

// split cuts an address from a ring into its frame and the offset in it, and checks that length bytes from there are
// in the frame.
func (u *umem) split(addr uint64, length uint32) (frame uint64, offset int, ok bool) {
	offset = int(addr & (u.size - 1))
	frame = addr - uint64(offset)
	return frame, offset, frame < uint64(len(u.mem)) && uint64(offset)+uint64(length) <= u.size
}

// owner tells which frame a slot's memory is; false for memory that is not a frame of ours.
func (u *umem) owner(mem []byte) (frame uint64, ok bool) {
	frame = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))) - uintptr(unsafe.Pointer(unsafe.SliceData(u.mem))))
	return frame, frame < uint64(len(u.mem))
}
