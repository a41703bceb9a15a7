package underlay

import (
	"net/netip"
	"testing"

	"weft/internal/nettest"
	"weft/packet"
)

// BenchmarkExchange moves batches of 46 packets, a 64 KB super-packet's worth, through two ports
// over loopback in one goroutine: what a packet costs in the port and the kernel together.
func BenchmarkExchange(b *testing.B) {
	const size, run = 1400, 46
	for name, cfg := range map[string]Config{"Single": {}, "Batch": {Batch: true}, "Offload": {Batch: true, Offload: true}} {
		b.Run(name, func(b *testing.B) {
			ns := nettest.New(b)
			cfg.Local, cfg.Port = []netip.Addr{loopback4}, testPort
			var p packet.Port
			var err error
			ns.Do(func() { p, err = Listen(cfg, 1) })
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			q := p.Queues()[0]
			out, in := packet.NewBatch(run, 1500), packet.NewBatch(packet.BatchSize, 1500)
			hop := hopTo(netip.AddrPortFrom(loopback4, testPort)) // itself
			for i := range run {
				put(out, i, pattern(i, size), hop, 0)
			}
			b.SetBytes(size)
			for done := 0; done < b.N; {
				if err := q.Send(out); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < run; got += in.Len() {
					if err := q.Recv(in); err != nil {
						b.Fatal(err)
					}
				}
				done += run
			}
		})
	}
}
