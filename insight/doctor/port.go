package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/api"
	"weft/catalog/mode"
	"weft/internal/config"
	"weft/internal/holder"
)

// port says who has the tunnel's UDP port.
func port(p Subject, s api.Status, running bool) Finding {
	usual, _ := mode.Find(p.Modes, mode.Default)
	n := usual.Port
	switch {
	case running:
		n = s.Port
	case p.Config != nil:
		n = p.Config.Network.Port
		if e := p.Config.Encryption; e.Cipher != config.CipherNone {
			n = e.Port
		}
	}
	f := Finding{Name: "udp port", Level: OK, Found: fmt.Sprintf("%d is free", n)}
	if n == 0 {
		f.Found = "none: this mode sends no UDP"
		return f
	}
	holders, err := holder.UDP(n)
	switch {
	case err != nil:
		f.Level, f.Found, f.Remedy = Note, err.Error(), "mount /proc"
	case len(holders) == 0 && !running:
	case len(holders) == 0:
		f.Level, f.Found = Wrong, fmt.Sprintf("%d is not open although the daemon runs", n)
		f.Remedy = "see `weft status`; the daemon may be in another network namespace"
	case running && slices.ContainsFunc(holders, func(h string) bool {
		return h == holder.Process(s.PID) || h == holder.Vxlan("weft0") || strings.HasPrefix(h, holder.Vxlan("weft-"))
	}):
		f.Found = fmt.Sprintf("%d is the daemon's", n)
	default:
		f.Level, f.Found = Wrong, fmt.Sprintf("%d is in use by %s", n, strings.Join(holders, " and "))
		f.Remedy = "stop that, or set network.port on every node"
	}
	return f
}

// refuses says whether somebody answers an empty datagram to a UDP port with ICMP "port unreachable".
func refuses(ctx context.Context, to netip.AddrPort, wait time.Duration) bool {
	var dial net.Dialer
	c, err := dial.DialContext(ctx, "udp", to.String())
	if err != nil {
		return false
	}
	defer c.Close()
	if _, err := c.Write(nil); err != nil {
		return errors.Is(err, unix.ECONNREFUSED)
	}
	c.SetReadDeadline(time.Now().Add(wait))
	_, err = c.Read(make([]byte, 1))
	return errors.Is(err, unix.ECONNREFUSED)
}
