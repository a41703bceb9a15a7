// Package nft writes a policy.Program as the nftables table that enforces it.
//
// Packets are judged where they are forwarded: behind DNAT, before any mode has them. One base chain jumps to egress, then to ingress, for both to
// be of one table where it changes; what is allowed returns: to accept would have egress speak for ingress. Each asks three questions, whatever the
// number of rules and pods: is the pod one that policies are about (a set), who is the other end (a map of addresses, then one of ranges), and
// which ports may those two use (a map). A connection's answers belong to it (ct direction reply); its own direction is judged packet
// by packet, so that a change bites at once. Flows of which a change denies the answers too are marked (Mark) in connection tracking.
//
// What rules log, and what staged policies would decide, is counted on the way to the verdict, and logged to Group where a rule says so.
//
// What the node itself sends and gets passes the output and input hooks: it is judged where policies are about the node, but for what it
// sends to its own pods, which NetworkPolicy always allows.
package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/hostnet"
	"weft/policy"
)

// Name of the table, which is one of family inet.
const Name = hostnet.LinkPrefix + "-policy"

// Family of the table.
const Family = nftables.TableFamilyINet

// Mark is the bit of connection tracking's mark that flows have which are denied since they began. kube-proxy and portmap mark packets,
// not flows.
const Mark = 1 << 29

// TakenUp is the bit of flows of TCP that connection tracking took up in their midst (nf_conntrack_tcp_loose): whoever spoke passes for the client
// there, and nobody's packets for answers. Each direction is judged by itself.
const TakenUp = 1 << 28

// Counters that are no policy's.
const (
	Unknown = "unknown" // of pods of which nothing is known
	Ended   = "ended"   // of flows that are denied since they began
)

// Group is where packets are logged to, of nfnetlink_log: those that a rule logs, and some of those that are denied, each with its counter's
// name as prefix.
const Group = 87

// How many packets are logged by each rule of the table.
const (
	LogsPerSecond = 10
	logBurst      = 20
	logBytes      = 128 // of a packet: its headers
)

// The base chains stand before a firewall's filter, priority 0.
const basePriority = -6

// Rules are a Program as nftables has it.
type Rules struct {
	Table hostnet.Table
	// What the table's counters count, by name; those that are no policy's are left out.
	Denied, Allowed map[string]policy.Reason
	Noted           map[string]policy.Note
}

// Options say what the table needs to know besides.
type Options struct {
	// Prefixes are the node's own: whoever has an address of them and is not in Known is denied everything.
	Prefixes []netip.Prefix
	Known    []netip.Addr
	Log      bool // the kernel can log to a Group
}

// HostChain is the base chain that judges what the node itself sends or gets; there is none in either direction where no policy is about it.
func HostChain(d policy.Direction) string { return "host_" + d.String() }

// builder collects the parts.
type builder struct {
	program *policy.Program
	log     bool
	rules   Rules
	chains  map[string]bool
}

// family is what differs between IPv4 and IPv6.
type family struct {
	digit               string
	number              byte // NFPROTO_…
	source, destination uint32
	size                uint32
	key                 nftables.SetDatatype
	has                 func(netip.Addr) bool
}

// Offsets of addresses: RFC 791, RFC 8200.
var families = []family{
	{"4", unix.NFPROTO_IPV4, 12, 16, 4, nftables.TypeIPAddr, netip.Addr.Is4},
	{"6", unix.NFPROTO_IPV6, 8, 24, 16, nftables.TypeIP6Addr, netip.Addr.Is6},
}

// Table writes the table.
func Table(g *policy.Program, o Options) Rules {
	b := &builder{program: g, log: o.Log, chains: map[string]bool{}, rules: Rules{Table: hostnet.Table{Name: Name, Family: Family, Kept: true, Seamless: true},
		Denied: map[string]policy.Reason{}, Allowed: map[string]policy.Reason{}, Noted: map[string]policy.Note{}}}
	base := map[policy.Direction][][]expr.Any{}
	for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		side := &g.Sides[d]
		base[d] = b.unknown(d, o)
		if d == policy.Egress {
			// Also where nobody is judged: it has connections tracked from their beginning, so that who began them is known when
			// somebody is. Of one that is taken up in its midst (nf_conntrack_tcp_loose) whoever speaks next passes for the client.
			b.drop(Ended)
			base[d] = append(base[d], ended(), takenUp())
		}
		if len(side.Profiles) > 0 {
			base[d] = append(base[d], answers()...)
		}
		for _, f := range families {
			base[d] = append(base[d], b.side(d, f)...)
		}
	}
	var forward [][]expr.Any
	for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		if len(base[d]) > 0 {
			b.chain(d.String(), base[d])
			forward = append(forward, to(&expr.Verdict{Kind: expr.VerdictJump, Chain: d.String()}))
		}
	}
	b.base("forward", nftables.ChainHookForward, forward)
	for d, hook := range []*nftables.ChainHook{nftables.ChainHookOutput, nftables.ChainHookInput} {
		b.host(policy.Direction(d), hook, o)
	}
	return b.rules
}

// unknown denies pods of which nothing is known, in one direction.
func (b *builder) unknown(d policy.Direction, o Options) (rules [][]expr.Any) {
	if len(o.Prefixes) == 0 {
		return nil
	}
	b.drop(Unknown)
	for _, f := range families {
		set := "known" + f.digit
		if d == policy.Egress {
			var elements []nftables.SetElement
			for _, a := range slices.SortedFunc(slices.Values(o.Known), netip.Addr.Compare) {
				if f.has(a) {
					elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
				}
			}
			b.set(nftables.Set{Name: set, KeyType: f.key}, elements, f.asked(forwarded, source)|f.asked(forwarded, destination))
		}
		for _, p := range o.Prefixes {
			if f.has(p.Addr()) {
				rules = append(rules, rule(hostnet.Match(p, d == policy.Egress, true), f.own(d),
					[]expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}}, to(&expr.Verdict{Kind: expr.VerdictGoto, Chain: chainOf(Unknown)})))
			}
		}
	}
	return rules
}

// side leads packets of pods that policies are about to the chain that asks who the other end is.
func (b *builder) side(d policy.Direction, f family) [][]expr.Any {
	side, name := &b.program.Sides[d], d.String()+f.digit
	var own []netip.Addr
	for a := range side.Profiles {
		if f.has(a) {
			own = append(own, a)
		}
	}
	if len(own) == 0 {
		return nil
	}
	slices.SortFunc(own, netip.Addr.Compare)
	var judged []nftables.SetElement
	for _, a := range own {
		judged = append(judged, nftables.SetElement{Key: a.AsSlice()})
	}
	b.others(name, d, f, forwarded, func(identity int) *expr.Verdict { return b.identity(d, f, identity, own) })
	b.set(nftables.Set{Name: name + "_pods", KeyType: f.key}, judged, f.asked(forwarded, ownEnd(d)))
	return [][]expr.Any{rule(f.only(), f.own(d), []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: name + "_pods"}}, to(&expr.Verdict{Kind: expr.VerdictGoto, Chain: name}))}
}

// host judges what the node itself sends or gets, where policies are about it.
func (b *builder) host(d policy.Direction, hook *nftables.ChainHook, o Options) {
	side := &b.program.Sides[d]
	if side.Host < 0 {
		return
	}
	loopback := expr.MetaKeyIIFNAME
	if d == policy.Egress {
		loopback = expr.MetaKeyOIFNAME
	}
	b.neighbourTypes()
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	rules := [][]expr.Any{rule([]expr.Any{&expr.Meta{Key: loopback, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: lo}}, allow())}
	rules = append(append(rules, ended(), takenUp()), answers()...)
	rules = append(rules, rule(families[1].only(), neighbours(), allow()))
	if set := b.openAt(1 - d); set != "" {
		rules = append(rules, rule(flowMarked(TakenUp), goesOn(), []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set}}, allow()))
	}
	if d == policy.Egress {
		for _, p := range o.Prefixes {
			rules = append(rules, rule(hostnet.Match(p, false, true), allow()))
		}
	}
	for _, f := range families {
		name := "host_" + d.String() + f.digit
		b.others(name, d, f, local, func(identity int) *expr.Verdict { return b.list(side.Lists[identity][side.Host]) })
		rules = append(rules, rule(f.only(), to(&expr.Verdict{Kind: expr.VerdictGoto, Chain: name})))
	}
	b.base(HostChain(d), hook, rules)
}

// openAt makes the set of the ports of TCP that stay open on the node in one direction whatever policies say; "" = there are none. Sessions of theirs
// that stand go on when connection tracking took them up in their midst: their other direction passes by these ports, too. In no other flow does
// the source port say anything: whoever begins chooses it.
func (b *builder) openAt(d policy.Direction) (name string) {
	side := &b.program.Sides[d]
	if side.Host < 0 {
		return ""
	}
	var ports []nftables.SetElement
	for _, s := range b.program.Lists[side.Lists[0][side.Host]] {
		if b.program.Reasons[s.Reason].Tier != policy.Failsafe {
			continue
		}
		for at := s.First; at <= s.Last; at++ {
			if p, port := at.Protocol(); p == policy.TCP {
				ports = append(ports, nftables.SetElement{Key: binary.BigEndian.AppendUint16(nil, port)})
			}
		}
	}
	if len(ports) == 0 {
		return ""
	}
	name = "open_" + d.String()
	b.set(nftables.Set{Name: name, KeyType: nftables.TypeInetService}, ports, 0)
	return name
}

// goesOn is true for a packet of TCP that begins nothing, and loads its source port.
func goesOn() []expr.Any {
	return append(tcpWithoutSYN(), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2})
}

// neighbours is what IPv6 cannot do without on a link: ICMPv6 types 130 to 137 (MLD, neighbour discovery and redirects) and 143 (MLDv2).
func neighbours() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Lookup{SourceRegister: 1, SetName: neighbourTypes},
	}
}

const neighbourTypes = "neighbour_types"

func (b *builder) neighbourTypes() {
	if slices.ContainsFunc(b.rules.Table.Sets, func(s hostnet.Set) bool { return s.Name == neighbourTypes }) {
		return
	}
	var types []nftables.SetElement
	for _, n := range []byte{130, 131, 132, 133, 134, 135, 136, 137, 143} {
		types = append(types, nftables.SetElement{Key: []byte{n}})
	}
	b.set(nftables.Set{Name: neighbourTypes, KeyType: nftables.TypeICMP6Type}, types, 0)
}

// others makes the chain that asks who the other end is, and goes where of says.
func (b *builder) others(name string, d policy.Direction, f family, way int, of func(identity int) *expr.Verdict) {
	side := &b.program.Sides[d]
	asked := f.asked(way, 1-ownEnd(d))
	var peers, nets []nftables.SetElement
	verdicts := map[int]*expr.Verdict{}
	once := of
	of = func(identity int) *expr.Verdict {
		if verdicts[identity] == nil {
			verdicts[identity] = once(identity)
		}
		return verdicts[identity]
	}
	for _, a := range slices.SortedFunc(maps.Keys(side.Peers), netip.Addr.Compare) {
		if f.has(a) {
			peers = append(peers, nftables.SetElement{Key: a.AsSlice(), VerdictData: of(side.Peers[a])})
		}
	}
	for _, n := range side.Nets {
		if !f.has(n.First) {
			continue
		}
		nets = append(nets, nftables.SetElement{Key: n.First.AsSlice(), VerdictData: of(n.Identity)})
		if after := n.Last.Next(); after.IsValid() {
			nets = append(nets, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	var rules [][]expr.Any
	if len(peers) > 0 {
		b.set(nftables.Set{Name: name + "_peers", IsMap: true, KeyType: f.key, DataType: nftables.TypeVerdict}, peers, asked)
		rules = append(rules, rule(f.other(d), lookup(name+"_peers")))
	}
	if len(nets) > 0 {
		b.set(nftables.Set{Name: name + "_nets", IsMap: true, Interval: true, KeyType: f.key, DataType: nftables.TypeVerdict}, nets, asked)
		rules = append(rules, rule(f.other(d), lookup(name+"_nets")))
	}
	rules = append(rules, to(of(0)))
	b.chain(name, rules)
}

// identity is where packets go whose other end is of one identity: by the pod to its list of ports.
func (b *builder) identity(d policy.Direction, f family, identity int, own []netip.Addr) *expr.Verdict {
	side := &b.program.Sides[d]
	var elements []nftables.SetElement
	alike := true
	first := b.list(side.Lists[identity][side.Profiles[own[0]]])
	for _, a := range own {
		v := b.list(side.Lists[identity][side.Profiles[a]])
		alike = alike && *v == *first
		elements = append(elements, nftables.SetElement{Key: a.AsSlice(), VerdictData: v})
	}
	if alike {
		return first
	}
	name := fmt.Sprintf("%s%s_%d", d, f.digit, identity)
	b.set(nftables.Set{Name: name, IsMap: true, KeyType: f.key, DataType: nftables.TypeVerdict}, elements, f.asked(forwarded, ownEnd(d)))
	b.chain(name, [][]expr.Any{rule(f.own(d), lookup(name))})
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
}

// portKey is a protocol and a destination port, as a concatenation has them: each in four bytes.
func portKey(p policy.Protocol, port uint16) []byte {
	return append([]byte{byte(p), 0, 0, 0}, append(binary.BigEndian.AppendUint16(nil, port), 0, 0)...)
}

// list is where packets go that a list of ports decides about.
func (b *builder) list(n int) *expr.Verdict {
	spans := b.program.Lists[n]
	rest := b.outcome(spans[len(spans)-1]) // of the protocols without ports
	name := fmt.Sprintf("ports_%d", n)
	switch {
	case len(spans) == 1:
		return rest
	case b.chains[name]:
		return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
	}
	var elements []nftables.SetElement
	for _, s := range spans {
		v := b.outcome(s)
		for first := s.First; first <= s.Last; {
			p, port := first.Protocol()
			if p == 0 {
				break
			}
			// Up to the protocol's end at most.
			last := min(s.Last, first+policy.Place(65535-port))
			_, lastPort := last.Protocol()
			elements = append(elements, nftables.SetElement{Key: portKey(p, port), KeyEnd: portKey(p, lastPort), VerdictData: v})
			first = last + 1
		}
	}
	b.set(nftables.Set{Name: name, IsMap: true, Interval: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), DataType: nftables.TypeVerdict}, elements, 0)
	b.chain(name, [][]expr.Any{
		rule([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Payload{DestRegister: 9, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, // NFT_REG32_01, the second word of register 1
		}, lookup(name)),
		to(rest),
	})
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
}

// outcome is where packets go whose ports are decided: by what they are noted for to the verdict.
func (b *builder) outcome(s policy.Span) *expr.Verdict {
	verdict := b.reason(s.Reason)
	notes := b.program.Notes[s.Notes]
	if len(notes) == 0 {
		return verdict
	}
	name := "noted_" + digest(notes, b.program.Reasons[s.Reason])
	if b.chains[name] {
		return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
	}
	var rules [][]expr.Any
	for _, n := range notes {
		counter := "note_" + digest(n)
		if _, there := b.rules.Noted[counter]; !there {
			b.rules.Noted[counter] = n
			b.rules.Table.Counters = append(b.rules.Table.Counters, counter)
		}
		rules = append(rules, counted(counter))
		if n.Action == policy.Log && b.log {
			rules = append(rules, rule(flowState(expr.CtStateBitNEW), logged(counter)))
		}
	}
	b.chain(name, append(rules, to(verdict)))
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
}

// digest names what is to be counted: a change of other policies leaves it be.
func digest(of ...any) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", of))
	return fmt.Sprintf("%x", sum[:8])
}

// reason is a verdict in nftables' terms.
func (b *builder) reason(n int) *expr.Verdict {
	r := b.program.Reasons[n]
	switch {
	case r.Deny:
		counter := "denied_" + digest(r)
		b.rules.Denied[counter] = r
		b.drop(counter)
		return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainOf(counter)}
	case r.Tier == policy.NoTier:
		return &expr.Verdict{Kind: expr.VerdictReturn}
	}
	counter := "allowed_" + digest(r)
	if !b.chains[counter] {
		b.rules.Allowed[counter] = r
		b.rules.Table.Counters = append(b.rules.Table.Counters, counter)
		b.chain(counter, [][]expr.Any{append(counted(counter), allow()...)})
	}
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: counter}
}

func chainOf(counter string) string { return "drop_" + counter }

// drop makes the chain that counts and drops, and shows some of what it drops.
func (b *builder) drop(counter string) {
	if b.chains[chainOf(counter)] {
		return
	}
	b.rules.Table.Counters = append(b.rules.Table.Counters, counter)
	rules := [][]expr.Any{append(counted(counter), to(&expr.Verdict{Kind: expr.VerdictDrop})...)}
	if b.log {
		rules = [][]expr.Any{append(counted(counter), logged(counter)...), to(&expr.Verdict{Kind: expr.VerdictDrop})}
	}
	b.chain(chainOf(counter), rules)
}

func counted(counter string) []expr.Any {
	const object = 1 // NFT_OBJECT_COUNTER, linux/netfilter/nf_tables.h
	return []expr.Any{&expr.Objref{Type: object, Name: counter}}
}

// logged shows packets to Group, not too many: beyond the limit the rule ends.
func logged(counter string) []expr.Any {
	return []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: LogsPerSecond, Unit: expr.LimitTimeSecond, Burst: logBurst},
		&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN, Group: Group, Snaplen: logBytes, Data: []byte(counter)},
	}
}

func (b *builder) chain(name string, rules [][]expr.Any) {
	b.chains[name] = true
	b.rules.Table.Chains = append(b.rules.Table.Chains, hostnet.TableChain{Name: name, Rules: rules})
}

// base makes a base chain, which accepts what returns to it.
func (b *builder) base(name string, hook *nftables.ChainHook, rules [][]expr.Any) {
	b.rules.Table.Chains = append(b.rules.Table.Chains, hostnet.TableChain{Name: name, Type: nftables.ChainTypeFilter, Hook: hook,
		Priority: nftables.ChainPriorityRef(basePriority), Rules: rules})
}

// set adds a set; asked is hostnet.Set's.
func (b *builder) set(s nftables.Set, elements []nftables.SetElement, asked uint16) {
	b.rules.Table.Sets = append(b.rules.Table.Sets, hostnet.Set{Set: s, Elements: elements, Asked: asked})
}

// What packets ask of sets whose keys are addresses: about which of their ends, and on their way through the node or from and to it.
const (
	source, destination = 0, 1
	forwarded, local    = 0, 1
)

// asked is hostnet.Set.Asked of a set of one family's addresses.
func (f family) asked(way, end int) uint16 {
	bit := 2*way + end
	if f.digit == "6" {
		bit += 4
	}
	return 1 << bit
}

// ownEnd is the end of a packet that policies of a direction are about.
func ownEnd(d policy.Direction) int {
	if d == policy.Egress {
		return source
	}
	return destination
}

// own loads the pod's address, and other that of the other end.
func (f family) own(d policy.Direction) []expr.Any   { return f.load(d == policy.Egress) }
func (f family) other(d policy.Direction) []expr.Any { return f.load(d != policy.Egress) }

func (f family) load(source bool) []expr.Any {
	offset := f.destination
	if source {
		offset = f.source
	}
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}}
}

func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func to(v *expr.Verdict) []expr.Any { return []expr.Any{v} }

// allow goes on behind the jump to a direction's chain.
func allow() []expr.Any { return to(&expr.Verdict{Kind: expr.VerdictReturn}) }

// only is true for the family's packets.
func (f family) only() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.number}}}
}

// ended leads flows to their end that are denied since they began.
func ended() []expr.Any {
	return rule(flowMarked(Mark), to(&expr.Verdict{Kind: expr.VerdictGoto, Chain: chainOf(Ended)}))
}

// answers pass that belong to connections which are judged.
func answers() [][]expr.Any {
	begun := []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, // and not taken up
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(TakenUp), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)}}
	return [][]expr.Any{rule(flowState(expr.CtStateBitRELATED), allow()), rule(flowReply(), flowState(expr.CtStateBitESTABLISHED), begun, allow())}
}

// lookup ends a rule with the verdict that a map has for what register 1 holds.
func lookup(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: set}}
}

// bits is true where a number in register 1 has one of them.
func bits(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func flowState(state uint32) []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}, bits(state)...)
}

func flowMarked(bit uint32) []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}}, bits(bit)...)
}

// takenUp marks a flow of TCP whose first packet here has no SYN.
func takenUp() []expr.Any {
	word := binaryutil.NativeEndian.PutUint32
	return rule(flowState(expr.CtStateBitNEW), tcpWithoutSYN(), []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(^uint32(TakenUp)), Xor: word(TakenUp)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	})
}

// tcpWithoutSYN is true for a packet of TCP that begins no connection.
func tcpWithoutSYN() []expr.Any {
	const flagSYN = 0x02 // RFC 9293, 3.1: the 14th byte
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{flagSYN}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}},
	}
}

func flowReply() []expr.Any {
	const reply = 1 // IP_CT_DIR_REPLY
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{reply}}}
}
