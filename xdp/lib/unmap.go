package lib

import (
	"errors"
	"fmt"
	"reflect"
	"syscall"
	"unsafe"

	asavie "github.com/asavie/xdp"
	"golang.org/x/sys/unix"
)

// unmap unmaps the rings of a socket that is still open. The library forgets the mappings when it has made them; what
// it keeps is where each ring's producer index is, in fields of its own: reflect reads them.
func unmap(socket *asavie.Socket, size int) error {
	var at unix.XDPMmapOffsets
	length := uint32(unsafe.Sizeof(at))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket.FD()), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&at)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return fmt.Errorf("ask for the rings' layout: %w", errno)
	}
	var errs []error
	for _, r := range []struct {
		field string
		at    unix.XDPRingOffset
		entry int
	}{
		{"fillRing", at.Fr, 8}, {"completionRing", at.Cr, 8},
		{"rxRing", at.Rx, int(unsafe.Sizeof(unix.XDPDesc{}))}, {"txRing", at.Tx, int(unsafe.Sizeof(unix.XDPDesc{}))},
	} {
		producer := reflect.ValueOf(socket).Elem().FieldByName(r.field).FieldByName("Producer").UnsafePointer()
		mapping := unsafe.Slice((*byte)(unsafe.Add(producer, -int(r.at.Producer))), int(r.at.Desc)+size*r.entry)
		// Of package syscall, where the library got it: it keeps a table of mappings.
		if err := syscall.Munmap(mapping); err != nil {
			errs = append(errs, fmt.Errorf("unmap %s: %w", r.field, err))
		}
	}
	return errors.Join(errs...)
}
