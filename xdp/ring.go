package xdp

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is one of an AF_XDP socket's four single-producer single-consumer rings, shared with the kernel
// (Documentation/networking/af_xdp.rst). T is an address in the UMEM for the fill and completion rings and a
// descriptor for the RX and TX rings.
//
// Both indexes run freely over 32 bits and are masked on use. The side that is ours lives in a plain field and is
// published once per batch; the kernel's is read once per batch: one locked instruction each, not one per packet.
type ring[T any] struct {
	shared   []byte // the mapping
	producer *uint32
	consumer *uint32
	flags    *uint32
	entries  []T
	mask     uint32

	mine   uint32 // our index, not yet published
	theirs uint32 // the kernel's, as last seen
}

// mapRing maps one ring of size entries; page is its XDP_PGOFF_… or XDP_UMEM_PGOFF_….
func mapRing[T any](fd int, page int64, at unix.XDPRingOffset, size uint32) (ring[T], error) {
	var entry T
	shared, err := unix.Mmap(fd, page, int(at.Desc)+int(size)*int(unsafe.Sizeof(entry)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return ring[T]{}, fmt.Errorf("map ring %#x: %w", page, err)
	}
	word := func(offset uint64) *uint32 { return (*uint32)(unsafe.Pointer(&shared[offset])) }
	return ring[T]{
		shared:   shared,
		producer: word(at.Producer),
		consumer: word(at.Consumer),
		flags:    word(at.Flags),
		entries:  unsafe.Slice((*T)(unsafe.Pointer(&shared[at.Desc])), size),
		mask:     size - 1,
	}, nil
}

// unmap gives the mapping back. The mapping holds the socket's file: while it exists the kernel keeps the device's
// queue bound, even after the descriptor is closed.
func (r *ring[T]) unmap() error {
	if r.shared == nil {
		return nil
	}
	shared := r.shared
	*r = ring[T]{}
	return unix.Munmap(shared)
}

// needWakeup says whether the kernel asks to be told of new entries.
func (r *ring[T]) needWakeup() bool {
	return atomic.LoadUint32(r.flags)&unix.XDP_RING_NEED_WAKEUP != 0
}

// put writes the next entry of a ring we produce. The caller knows that there is room.
func (r *ring[T]) put(v T) {
	r.entries[r.mine&r.mask] = v
	r.mine++
}

// submit shows the kernel all that was put.
func (r *ring[T]) submit() { atomic.StoreUint32(r.producer, r.mine) }

// ready is how many entries of a ring we consume are there; the kernel's index is read only when none is left of
// what was seen before, or wanted is more.
func (r *ring[T]) ready(wanted uint32) uint32 {
	n := r.theirs - r.mine
	if n < wanted {
		r.theirs = atomic.LoadUint32(r.producer)
		n = r.theirs - r.mine
	}
	return min(n, wanted)
}

// take reads the next entry of a ring we consume.
func (r *ring[T]) take() T {
	v := r.entries[r.mine&r.mask]
	r.mine++
	return v
}

// release gives the kernel back the room of all that was taken.
func (r *ring[T]) release() { atomic.StoreUint32(r.consumer, r.mine) }
