package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/internal/ipnet"
	"weft/packet"
)

const (
	maxText  = 4096 // bytes of an expression
	maxDepth = 100  // of parentheses and nots
)

var protocols = map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP, "icmp": packet.ProtoICMP, "icmp6": packet.ProtoICMPv6,
	"sctp": packet.ProtoSCTP, "esp": packet.ProtoESP}

// Parse compiles an expression; an empty one is the nil Filter, which matches everything. Errors name the word that is wrong and what
// could stand there.
func Parse(text string) (*Filter, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("filter: %d bytes: at most %d are read", len(text), maxText)
	}
	p := parser{words: split(text)}
	if len(p.words) == 0 {
		return nil, nil
	}
	root, err := p.expr(0)
	if err == nil && !p.done() {
		err = fmt.Errorf("%q has no place here: write and, or, not, or a condition such as host ADDRESS", p.words[p.at])
	}
	if err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	return &Filter{text: text, root: root}, nil
}

// split cuts an expression into words; parentheses and the signs for and, or, not need no space around them.
func split(text string) []string {
	r := strings.NewReplacer("(", " ( ", ")", " ) ", "&&", " and ", "||", " or ", "!", " not ")
	return strings.Fields(r.Replace(text))
}

// parser descends through the grammar of the package comment.
type parser struct {
	words []string
	at    int
}

func (p *parser) done() bool { return p.at == len(p.words) }

// next returns the word at hand and steps over it; "" at the end.
func (p *parser) next() string {
	if p.done() {
		return ""
	}
	p.at++
	return p.words[p.at-1]
}

// take steps over the word at hand if it is one of these.
func (p *parser) take(words ...string) bool {
	if p.done() || !slices.Contains(words, p.words[p.at]) {
		return false
	}
	p.at++
	return true
}

func (p *parser) expr(depth int) (node, error) {
	a, err := p.term(depth)
	for err == nil && p.take("or") {
		var b node
		b, err = p.term(depth)
		a = or{a, b}
	}
	return a, err
}

func (p *parser) term(depth int) (node, error) {
	a, err := p.factor(depth)
	for err == nil && !p.done() {
		if w := p.words[p.at]; w == "or" || w == ")" {
			break
		}
		p.take("and")
		var b node
		b, err = p.factor(depth)
		a = and{a, b}
	}
	return a, err
}

func (p *parser) factor(depth int) (node, error) {
	if depth > maxDepth {
		return nil, errors.New("too deep: use fewer parentheses")
	}
	switch {
	case p.take("not"):
		a, err := p.factor(depth + 1)
		return not{a}, err
	case p.take("("):
		a, err := p.expr(depth + 1)
		if err == nil && !p.take(")") {
			err = errors.New("a parenthesis is not closed")
		}
		return a, err
	}
	return p.primitive()
}

func (p *parser) primitive() (node, error) {
	at := either
	switch {
	case p.take("src"):
		at = source
	case p.take("dst"):
		at = destination
	}
	word := p.next()
	switch word {
	case "":
		return nil, errors.New("it ends where a condition should be: host ADDRESS, net PREFIX, port N, tcp, drop, …")
	case "host":
		return p.host(at, p.next())
	case "net":
		return p.net(at, p.next())
	case "port", "portrange":
		return p.port(at, p.next())
	}
	if word[0] >= '0' && word[0] <= '9' || strings.Contains(word, ":") { // "src 10.0.0.1" is "src host 10.0.0.1"
		if strings.Contains(word, "/") {
			return p.net(at, word)
		}
		return p.host(at, word)
	}
	if at != either {
		return nil, fmt.Errorf("%q behind src or dst: write host ADDRESS, net PREFIX or port N", word)
	}
	switch word {
	case "proto":
		return p.proto(p.next())
	case "ip":
		return version{4}, nil
	case "ip6":
		return version{6}, nil
	case "arp":
		return arp{}, nil
	case "drop":
		return p.drop()
	}
	if number, ok := protocols[word]; ok {
		return protocol{number}, nil
	}
	return nil, fmt.Errorf("%q is no condition: write host ADDRESS, net PREFIX, port N, proto N, tcp, udp, icmp, icmp6, sctp, esp, ip, ip6, arp or drop [NAME]", word)
}

func (p *parser) host(at end, word string) (node, error) {
	a, err := netip.ParseAddr(word)
	if err != nil || a.Zone() != "" {
		return nil, fmt.Errorf("host %q: write an IPv4 or IPv6 address", word)
	}
	a = a.Unmap()
	return network{at, ipnet.Host(a)}, nil
}

func (p *parser) net(at end, word string) (node, error) {
	prefix, err := netip.ParsePrefix(word)
	if err != nil || prefix.Addr().Is4In6() {
		return nil, fmt.Errorf("net %q: write a prefix, 10.244.1.0/24 or fd00::/64 say", word)
	}
	return network{at, prefix.Masked()}, nil
}

func (p *parser) port(at end, word string) (node, error) {
	first, last, isRange := strings.Cut(word, "-")
	if !isRange {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err != nil || err2 != nil || from > to {
		return nil, fmt.Errorf("port %q: write a number from 0 to 65535, or two with a - between them", word)
	}
	return port{at, uint16(from), uint16(to)}, nil
}

func (p *parser) proto(word string) (node, error) {
	if number, ok := protocols[word]; ok {
		return protocol{number}, nil
	}
	number, err := strconv.ParseUint(word, 10, 8)
	if err != nil {
		return nil, fmt.Errorf("proto %q: write a number from 0 to 255, tcp, udp, icmp, icmp6, sctp or esp", word)
	}
	return protocol{uint8(number)}, nil
}

// drop takes the word that follows for a reason, unless the grammar has another use for it.
func (p *parser) drop() (node, error) {
	if p.done() || slices.Contains([]string{"and", "or", "not", "(", ")"}, p.words[p.at]) {
		return drop{}, nil
	}
	word := p.next()
	for d := packet.Alive + 1; d < packet.NumDrops; d++ {
		if d.String() == word {
			return drop{d}, nil
		}
	}
	return nil, fmt.Errorf("drop %q: no such reason: docs/reference.md lists them, no-route or too-big say", word)
}
