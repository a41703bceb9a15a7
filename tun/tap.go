package tun

import "weft/packet"

// OpenTAP makes the TAP device cfg.Name in the calling thread's network namespace, a multi-queue one if queues > 1. It is
// the plain port with whole Ethernet frames: slots need room for the MTU and packet.EthernetHeader. The device's own MAC
// is the kernel's choice until somebody sets it.
func OpenTAP(cfg Config, queues int) (packet.Port, error) {
	return openPlain(cfg, queues, packet.Ethernet)
}
