package model

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	"weft/internal/config/strict"
)

// Share is packets of one size in a mix.
type Share struct {
	Size   int     `json:"size"`   // of the inner IP packet, bytes
	Weight float64 `json:"weight"` // how many of them, relative to the others'
}

// Mix is what traffic consists of.
type Mix []Share

// imix is the "simple IMIX" (RFC 6985, appendix A, by IP length).
func imix() Mix { return Mix{{40, 7}, {576, 4}, {1500, 1}} }

// LoadMix reads what a mix is called: imix, a single size, or a YAML file.
func LoadMix(name string) (Mix, error) {
	if name == "imix" {
		return imix(), nil
	}
	if size, err := strconv.Atoi(name); err == nil {
		if size < 20 || size > 65535 {
			return nil, fmt.Errorf("mix %q: give a size from 20 to 65535", name)
		}
		return Mix{{size, 1}}, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("mix: %w: give imix, a packet size, or a YAML file", err)
	}
	return ParseMix(name, data)
}

// ParseMix reads `packets: [{size: 64, weight: 7}, …]`. The error is a strict.Errors.
func ParseMix(file string, data []byte) (Mix, error) {
	doc := strict.Parse(file, data)
	var mix Mix
	packets := doc.Root().Fields("packets")["packets"]
	for _, e := range packets.List() {
		f := e.Fields("size", "weight")
		size, ok := f["size"].Int(20, 65535)
		weight, weighed := f["weight"].Int(1, 1_000_000)
		if !f["size"].Present() || !f["weight"].Present() {
			e.Fail("write {size: 64, weight: 7}")
		}
		if ok && weighed {
			mix = append(mix, Share{int(size), float64(weight)})
		}
	}
	if err := doc.Err(); err != nil {
		return nil, err
	}
	if len(mix) == 0 {
		doc.Fail("holds no packets: write packets: [{size: 64, weight: 7}]")
		return nil, doc.Err()
	}
	return mix, nil
}

// mean is the mean size where no packet is larger than mtu.
func (m Mix) mean(mtu int) float64 {
	bytes, weight := 0.0, 0.0
	for _, s := range m {
		size := s.Size
		if mtu > 0 {
			size = min(size, mtu)
		}
		bytes, weight = bytes+s.Weight*float64(size), weight+s.Weight
	}
	return bytes / weight
}

// runs is how many runs a packet begins, on average, where packets of the mix come in random order. A run is what can be one super-packet
// (UDP_SEGMENT, udp(7)): packets of one size, and one that is shorter as its last. Packets of one size alone begin none.
//
// It is the stationary state of a chain whose states are the size of the run that is open, and "closed".
func (m Mix) runs() float64 {
	sizes := slices.Clone(m)
	slices.SortFunc(sizes, func(a, b Share) int { return a.Size - b.Size })
	if sizes[0].Size == sizes[len(sizes)-1].Size {
		return 0
	}
	weight := 0.0
	for _, s := range sizes {
		weight += s.Weight
	}
	open, closed, begun := make([]float64, len(sizes)), 1.0, 0.0
	const settled = 1000
	for range settled {
		next, shut := make([]float64, len(sizes)), 0.0
		begun = 0
		for i, s := range sizes { // the packet that comes
			p := s.Weight / weight
			next[i] += p * closed
			begun += p * closed
			for k, o := range open {
				switch {
				case sizes[k].Size == s.Size:
					next[k] += p * o
				case sizes[k].Size > s.Size:
					shut += p * o
				default:
					next[i] += p * o
					begun += p * o
				}
			}
		}
		open, closed = next, shut
	}
	return begun
}
