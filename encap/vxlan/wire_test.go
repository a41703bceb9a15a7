package vxlan_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"weft/encap/vxlan"
	"weft/packet"
	"weft/packet/packettest"
)

func wireDocument(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// vectors reads the fenced blocks named vxlan-vector: bytes in hexadecimal, behind a colon what
// they mean.
func vectors(t *testing.T, text string) (all [][]byte) {
	t.Helper()
	for _, block := range regexp.MustCompile("(?s)```vxlan-vector\n(.*?)```").FindAllStringSubmatch(text, -1) {
		var digits strings.Builder
		for line := range strings.Lines(block[1]) {
			data, _, _ := strings.Cut(line, ":")
			digits.WriteString(strings.Join(strings.Fields(data), ""))
		}
		b, err := hex.DecodeString(digits.String())
		if err != nil {
			t.Fatalf("vector %q: %v", block[1], err)
		}
		all = append(all, b)
	}
	return all
}

// vtepMAC is the derivation as the document words it.
func vtepMAC(node string) [6]byte {
	sum := sha256.Sum256([]byte("weft vtep " + node))
	mac := [6]byte(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// TestWireDocument holds docs/wire.md and the code together.
func TestWireDocument(t *testing.T) {
	text := wireDocument(t)

	t.Run("vectors", func(t *testing.T) {
		said := regexp.MustCompile(`Node .a. sends to node .b., VNI (\d+)`).FindStringSubmatch(text)
		flows := regexp.MustCompile(`(\S+:40000) to (\S+:53)`).FindAllStringSubmatch(text, -1)
		all := vectors(t, text)
		if said == nil || len(flows) != 2 || len(all) != 2 {
			t.Fatalf("%d flows and %d vectors, want one of each family", len(flows), len(all))
		}
		vni, _ := strconv.Atoi(said[1])
		for i, vector := range all {
			inner := packettest.UDP(netip.MustParseAddrPort(flows[i][1]), netip.MustParseAddrPort(flows[i][2]), 4, 0xc0)
			decoded := gopacket.NewPacket(vector, layers.LayerTypeVXLAN, gopacket.Default)
			header, _ := decoded.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
			frame, _ := decoded.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if header == nil || frame == nil || decoded.TransportLayer() == nil {
				t.Fatalf("gopacket cannot read %x", vector)
			}
			if header.VNI != uint32(vni) || [6]byte(frame.SrcMAC) != vtepMAC("a") || [6]byte(frame.DstMAC) != vtepMAC("b") || !bytes.Equal(frame.Payload, inner) {
				t.Errorf("vector %x is not what the text says", vector)
			}
			a := vxlan.New(vxlan.Config{VNI: header.VNI, MAC: vtepMAC("a")})
			if p := one(inner, &packet.Hop{Peer: packet.Peer{VNI: header.VNI, MAC: vtepMAC("b")}}, a.Out); !bytes.Equal(p.Bytes(), vector) {
				t.Errorf("Out makes %x\nvector   %x", p.Bytes(), vector)
			}
			b := vxlan.New(vxlan.Config{VNI: header.VNI, MAC: vtepMAC("b")})
			if p := one(vector, nil, b.In); p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), inner) {
				t.Errorf("In: %v: %x", p.Drop, p.Bytes())
			}
		}
	})

	t.Run("drops", func(t *testing.T) {
		var ip, ethernet []string
		for _, c := range inCases() {
			for list, drop := range map[*[]string]packet.Drop{&ip: c.ip, &ethernet: c.ethernet} {
				if drop != packet.Alive && !slices.Contains(*list, drop.String()) {
					*list = append(*list, drop.String())
				}
			}
		}
		var inTable, marked []string
		for _, row := range regexp.MustCompile("(?m)^\\| `([a-z-]+)`( \\*)? \\|").FindAllStringSubmatch(section(t, text, "### What is dropped"), -1) {
			inTable = append(inTable, row[1])
			if row[2] != "" {
				marked = append(marked, row[1])
			}
		}
		for _, list := range [][]string{ip, ethernet, inTable, marked} {
			slices.Sort(list)
		}
		if !slices.Equal(ip, inTable) {
			t.Errorf("the stage drops for %q, the document says %q", ip, inTable)
		}
		if !slices.Equal(ethernet, marked) {
			t.Errorf("the TAP's stage drops for %q, the document marks %q", ethernet, marked)
		}
	})

	t.Run("sizes", func(t *testing.T) {
		rows := regexp.MustCompile(`(?m)^\| (\d+) \| (\d+) \| (\d+)`).FindAllStringSubmatch(section(t, text, "### Sizes"), -1)
		if len(rows) == 0 {
			t.Fatal("no table of sizes")
		}
		overhead := ipStage().Overhead().Total()
		for _, row := range rows {
			var n [3]int
			for i := range n {
				n[i], _ = strconv.Atoi(row[i+1])
			}
			if v4, v6 := packet.InnerMTU(n[0], false, overhead), packet.InnerMTU(n[0], true, overhead); n[1] != v4 || n[2] != v6 {
				t.Errorf("underlay %d: the document says %d and %d, the code %d and %d", n[0], n[1], n[2], v4, v6)
			}
		}
	})
}

// section returns the text under a heading, up to the next one.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("docs/wire.md has no section %q", heading)
	}
	body, _, _ := strings.Cut(rest, "\n#")
	return body
}
