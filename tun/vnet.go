package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// struct virtio_net_hdr (virtio 1.2 §5.1.6, linux/virtio_net.h), in front of every packet on a
// device opened with IFF_VNET_HDR. Multi-byte fields are in the machine's own byte order unless
// TUNSETVNETLE or TUNSETVNETBE say otherwise.
//
//	0 |  flags  | gso_type |      hdr_len      |
//	4 |      gso_size      |     csum_start    |
//	8 |     csum_offset    |
const vnetHeader = 10

// maxPacket is the largest packet a TUN device hands over: an IPv6 header and the largest payload
// its 16-bit length field can say.
const maxPacket = 40 + 65535

// vnet is a decoded virtio_net_hdr. hdr_len is left out: the kernel fills it with what happens to
// be linear in its buffer, so it says nothing about the packet.
type vnet struct {
	flags       uint8 // unix.VIRTIO_NET_HDR_F_…
	gso         uint8 // unix.VIRTIO_NET_HDR_GSO_…, without the ECN bit
	size        int   // payload bytes of every segment but the last
	start       int   // where the unfinished checksum starts, from the packet's front
	offset      int   // where in that the field is
	headers     int   // written only: how many bytes of headers the packet has
	congestible bool  // the first segment carries CWR (VIRTIO_NET_HDR_GSO_ECN)
}

func parseVnet(b *[vnetHeader]byte) vnet {
	return vnet{
		flags:       b[0],
		gso:         b[1] &^ unix.VIRTIO_NET_HDR_GSO_ECN,
		size:        int(binary.NativeEndian.Uint16(b[4:])),
		start:       int(binary.NativeEndian.Uint16(b[6:])),
		offset:      int(binary.NativeEndian.Uint16(b[8:])),
		congestible: b[1]&unix.VIRTIO_NET_HDR_GSO_ECN != 0,
	}
}

func (v *vnet) put(b *[vnetHeader]byte) {
	b[0], b[1] = v.flags, v.gso
	if v.congestible {
		b[1] |= unix.VIRTIO_NET_HDR_GSO_ECN
	}
	binary.NativeEndian.PutUint16(b[2:], uint16(v.headers))
	binary.NativeEndian.PutUint16(b[4:], uint16(v.size))
	binary.NativeEndian.PutUint16(b[6:], uint16(v.start))
	binary.NativeEndian.PutUint16(b[8:], uint16(v.offset))
}

// partial reports whether the packet's checksum is unfinished (CHECKSUM_PARTIAL).
func (v *vnet) partial() bool { return v.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 }

// vectors is what the fast path needs of an open device: one packet, its virtio header first, in
// one system call, scattered or gathered. EAGAIN means that there is no packet, or no room.
type vectors interface {
	readv([]unix.Iovec) (int, unix.Errno)
	writev([]unix.Iovec) unix.Errno
}

// setIovec points v at b, which must not be empty.
func setIovec(v *unix.Iovec, b []byte) {
	v.Base = &b[0]
	v.SetLen(len(b))
}
