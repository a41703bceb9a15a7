package probe

import (
	"net/netip"
	"strings"
	"testing"
)

func TestPayloads(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		size int
		to   netip.Addr
		want int
		err  string
	}{
		{64, v4, 36, ""},
		{44, v4, 16, ""},
		{43, v4, 0, "at least 44"},
		{64, v6, 16, ""},
		{63, v6, 0, "at least 64"},
		{1360, v6, 1312, ""},
	} {
		got, err := udpPayload(c.size, c.to)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("UDP %d to %s: got %d, %v", c.size, c.to, got, err)
		}
	}
	for _, c := range []struct {
		size       int
		to         netip.Addr
		timestamps bool
		mss        int
		want       int
		err        string
	}{
		{64, v4, true, 1448, 12, ""},
		{64, v4, false, 1460, 24, ""},
		{64, v6, true, 1428, 1, ""}, // 73 bytes is the least
		{41, v4, true, 1448, 1, ""},
		{40, v4, true, 1448, 0, "at least 41"},
		{60, v6, true, 1428, 0, "at least 61"},
		{1500, v4, true, 1448, 1448, ""},
		{1501, v4, true, 1448, 0, "at most 1500"},
	} {
		got, err := tcpPayload(c.size, c.to, c.timestamps, c.mss)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("TCP %+v: got %d, %v", c, got, err)
		}
	}
}
