// Package wireguardgo runs golang.zx2c4.com/wireguard as the command of that name does: a TUN device,
// its default sockets, and WireGuard in between. It is what the lab compares with, so nothing of the library is
// set other than the command sets it. It is the only package that may import the library.
package wireguardgo

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// Config is one end of a tunnel.
type Config struct {
	Device   string // name of the TUN device to make
	MTU      int    // of that device, bytes
	Settings string // keys, port and peers in the form of WireGuard's cross-platform interface, "set=1" left out
}

// Run makes the device, calls ready once it would carry packets, and carries them until ctx ends (nil)
// or the device is taken away (an error). The device goes with it. Addresses and routes are the caller's.
func Run(ctx context.Context, c Config, ready func()) error {
	link, err := tun.CreateTUN(c.Device, c.MTU)
	if err != nil {
		return fmt.Errorf("wireguard-go: make TUN device %s: %w: it needs /dev/net/tun and CAP_NET_ADMIN", c.Device, err)
	}
	// The library's own logger writes to standard output, which says "ready" here.
	errorLog := log.New(os.Stderr, "wireguard-go: ", 0)
	d := device.NewDevice(link, conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: errorLog.Printf})
	defer d.Close()
	if err := d.IpcSet(c.Settings); err != nil {
		return fmt.Errorf("wireguard-go: settings: %w", err)
	}
	if err := d.Up(); err != nil {
		return fmt.Errorf("wireguard-go: open the sockets: %w", err)
	}
	ready()
	select {
	case <-ctx.Done():
		return nil
	case <-d.Wait():
		return errors.New("wireguard-go: the device was closed: did somebody remove it?")
	}
}
