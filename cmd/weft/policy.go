package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weft/policy"
)

// newPolicyCommand is `weft policy`.
func newPolicyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Network policies and what follows from them"}
	c.AddCommand(newPolicyListCommand(), newPolicyExplainCommand())
	return c
}

const policyFileUsage = "a file of workloads and policies"

// readPolicies reads a file that --file names.
func readPolicies(file string) (*policy.World, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, usageError{fmt.Errorf("policy: %w", err)}
	}
	return policy.Parse(file, data)
}

// listedPolicy is what `weft policy list -o json` prints of a policy.
type listedPolicy struct {
	Policy   string   `json:"policy"`
	Tier     string   `json:"tier"`
	Priority int      `json:"priority"`
	Isolates []string `json:"isolates"` // directions
	Rules    int      `json:"rules"`
	Pods     []string `json:"pods"` // that it selects
}

func newPolicyListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "list --file FILE",
		Short: "The policies of a file in the order in which they are asked, and the pods that each selects",
		Args:  cobra.NoArgs,
	}
	file, form := c.Flags().String("file", "", policyFileUsage), formatFlag(c)
	_ = c.MarkFlagRequired("file")
	c.RunE = func(c *cobra.Command, _ []string) error {
		w, err := readPolicies(*file)
		if err != nil {
			return err
		}
		list := []listedPolicy{}
		for _, p := range w.Policies() {
			l := listedPolicy{Policy: p.String(), Tier: p.Tier.String(), Priority: p.Priority, Isolates: []string{}, Pods: []string{}}
			for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
				l.Rules += len(p.Rules[d])
				if p.Isolates[d] {
					l.Isolates = append(l.Isolates, d.String())
				}
			}
			for _, pod := range w.Pods() {
				if w.Selects(p, pod) {
					l.Pods = append(l.Pods, pod.String())
				}
			}
			list = append(list, l)
		}
		return show(c.OutOrStdout(), *form, list, func(out io.Writer) {
			row(out, "POLICY", "TIER", "PRIORITY", "ISOLATES", "RULES", "PODS")
			for _, l := range list {
				row(out, l.Policy, l.Tier, l.Priority, orDash(strings.Join(l.Isolates, ",")), l.Rules, orDash(strings.Join(l.Pods, ",")))
			}
		})
	}
	return c
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// explained is what `weft policy explain -o json` prints of one connection.
type explained struct {
	Src      netip.Addr      `json:"src"`
	SrcName  string          `json:"src_name"`
	Dst      netip.Addr      `json:"dst"`
	DstName  string          `json:"dst_name"`
	Protocol uint8           `json:"protocol"`
	Port     uint16          `json:"port"`
	Allowed  bool            `json:"allowed"`
	Ends     []explainedSide `json:"ends"` // those that are pods: the source's egress, the destination's ingress

	text string
}

// explainedSide is what the policies of one end say.
type explainedSide struct {
	Direction string          `json:"direction"`
	Pod       string          `json:"pod"`
	Allowed   bool            `json:"allowed"`
	Tier      string          `json:"tier"`
	Policy    string          `json:"policy"`
	Rule      string          `json:"rule"`
	Text      string          `json:"text"`
	Remedy    string          `json:"remedy,omitempty"`
	Asked     []explainedRule `json:"asked"`
}

// explainedRule is a rule that was looked at, up to the one that decided.
type explainedRule struct {
	Tier   string `json:"tier"`
	Policy string `json:"policy"`
	Rule   string `json:"rule"`
	Action string `json:"action"`
	Peer   bool   `json:"peer"`
	Port   bool   `json:"port"`
}

// errDenied is the answer of `weft policy explain` in its exit code.
var errDenied = errors.New("policy: the connection is denied")

func newPolicyExplainCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "explain --file FILE SRC DST PORT",
		Short: "Whether one end may reach the other by the policies of a file, by which rule, and what would have to change",
		Long: `SRC and DST are NAMESPACE/POD of the file or addresses, behind all address translation; PORT is the
destination's: 80, tcp/80, udp/53, sctp/9, or icmp, or another protocol's number as proto/47. Pods of two families
are judged in each. Exit code 1 when the connection is denied.

The file is read and nothing else: no daemon is asked, and what it says need not be in force anywhere.`,
		Example: "  weft policy explain --file policies.yaml shop/web shop/db tcp/5432\n  weft policy explain --file policies.yaml 192.0.2.7 shop/web 80",
		Args:    cobra.ExactArgs(3),
	}
	file, form := c.Flags().String("file", "", policyFileUsage), formatFlag(c)
	_ = c.MarkFlagRequired("file")
	c.RunE = func(c *cobra.Command, args []string) error {
		w, err := readPolicies(*file)
		if err != nil {
			return err
		}
		questions, err := policyQuestions(w, args)
		if err != nil {
			return usageError{err}
		}
		answers, denied := make([]explained, 0, len(questions)), false
		for _, q := range questions {
			a := explain(w, q)
			answers = append(answers, a)
			denied = denied || !a.Allowed
		}
		err = show(c.OutOrStdout(), *form, answers, func(out io.Writer) { printExplained(out, answers) })
		if err == nil && denied {
			err = errDenied
		}
		return err
	}
	return c
}

// policyQuestions reads SRC DST PORT: one question for each family that both ends have.
func policyQuestions(w *policy.World, args []string) (list []policy.Traffic, err error) {
	protocol, port, err := policyPort(args[2])
	if err != nil {
		return nil, err
	}
	var ends [2][]netip.Addr
	for i, text := range args[:2] {
		if ends[i], err = policyEnd(w, text); err != nil {
			return nil, err
		}
	}
	families := map[bool]bool{}
	for _, src := range ends[0] {
		for _, dst := range ends[1] {
			if src.Is4() == dst.Is4() && !families[src.Is4()] {
				families[src.Is4()] = true
				list = append(list, policy.Traffic{Src: src, Dst: dst, Protocol: protocol, Port: port})
			}
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("policy: %s and %s have no address of one family", args[0], args[1])
	}
	return list, nil
}

func policyEnd(w *policy.World, text string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok {
		return nil, fmt.Errorf("policy: %q is neither an address nor NAMESPACE/POD", text)
	}
	pod := w.Pod(namespace, name)
	if pod == nil {
		return nil, fmt.Errorf("policy: the file has no pod %s", text)
	}
	return pod.Addresses, nil
}

var policyProtocols = map[string]policy.Protocol{"tcp": policy.TCP, "udp": policy.UDP, "sctp": policy.SCTP}

// policyPort reads 80, udp/53, icmp or proto/47.
func policyPort(text string) (policy.Protocol, uint16, error) {
	if text == "icmp" {
		return 1, 0, nil
	}
	kind, number, ok := strings.Cut(text, "/")
	if !ok {
		kind, number = "tcp", text
	}
	bits := 16
	if kind == "proto" {
		bits = 8
	}
	n, err := strconv.ParseUint(number, 10, bits)
	protocol, known := policyProtocols[kind]
	switch {
	case err == nil && kind == "proto":
		return policy.Protocol(n), 0, nil
	case err == nil && known:
		return protocol, uint16(n), nil
	}
	return 0, 0, fmt.Errorf("policy: %q is not a port: write it like 80, tcp/80, udp/53, sctp/9, icmp or proto/47", text)
}

func explain(w *policy.World, q policy.Traffic) explained {
	a := w.Evaluate(q)
	e := explained{Src: q.Src, SrcName: w.Name(q.Src), Dst: q.Dst, DstName: w.Name(q.Dst), Protocol: uint8(q.Protocol), Port: q.Port, Allowed: a.Allowed,
		Ends: []explainedSide{}, text: q.String()}
	for d, o := range []policy.Opinion{a.Egress, a.Ingress} {
		if o.Pod == "" {
			continue
		}
		s := explainedSide{Direction: policy.Direction(d).String(), Pod: o.Pod, Allowed: !o.Reason.Deny, Tier: o.Reason.Tier.String(), Policy: o.Reason.Policy,
			Rule: o.Reason.Rule, Text: o.Reason.String(), Remedy: o.Remedy, Asked: []explainedRule{}}
		for _, r := range o.Asked {
			s.Asked = append(s.Asked, explainedRule{r.Tier.String(), r.Policy, r.Rule, r.Action.String(), r.Peer, r.Port})
		}
		e.Ends = append(e.Ends, s)
	}
	return e
}

func printExplained(out io.Writer, answers []explained) {
	yes := map[bool]string{true: "yes", false: "no"}
	for i, a := range answers {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s (%s → %s): %s\n", a.text, a.SrcName, a.DstName, map[bool]string{true: "allowed", false: "denied"}[a.Allowed])
		for _, s := range a.Ends {
			fmt.Fprintf(out, "  %s of pod %s: %s\n", s.Direction, s.Pod, s.Text)
			for _, r := range s.Asked {
				fmt.Fprintf(out, "    %s %s %s: %s; peer: %s, port: %s\n", r.Tier, r.Policy, r.Rule, r.Action, yes[r.Peer], yes[r.Port])
			}
			if s.Remedy != "" {
				fmt.Fprintf(out, "    remedy: %s\n", s.Remedy)
			}
		}
	}
}
