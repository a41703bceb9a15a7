package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
	"weft/policy"
)

// newPolicyCommand is `weft policy`.
func newPolicyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Network policies and what follows from them"}
	c.AddCommand(newPolicyListCommand(), newPolicyShowCommand(), newPolicyExplainCommand())
	return c
}

const policyFileUsage = "a file of workloads and policies to read instead of asking the daemon"

// readPolicies reads a file that --file names.
func readPolicies(file string) (*policy.World, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, usageError{fmt.Errorf("policy: %w", err)}
	}
	return policy.Parse(file, data)
}

func newPolicyListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "Policies in the order in which they are asked, the pods that each selects, and what was denied",
		Args:  cobra.NoArgs,
	}
	file, socket, form := c.Flags().String("file", "", policyFileUsage), socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		p, err := policiesOf(c.Context(), *file, *socket)
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *form, p, func(out io.Writer) { printPolicies(out, p, *file != "") })
	}
	return c
}

// policiesOf asks a file, or where none is named the daemon.
func policiesOf(ctx context.Context, file, socket string) (api.Policies, error) {
	if file == "" {
		client := api.NewClient(socket)
		defer client.Close()
		return client.Policies(ctx)
	}
	w, err := readPolicies(file)
	if err != nil {
		return api.Policies{}, err
	}
	return api.Policies{Source: "file", File: file, Pods: len(w.Pods()), Policies: w.List(), Odd: []string{}, Denied: []api.PolicyDenied{}, Counted: []api.PolicyCounted{}}, nil
}

func newPolicyShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show POLICY",
		Short: "One policy in words: whom it selects, its rules in the order in which they are asked, and what each did to packets",
		Long:  "POLICY is NAMESPACE/NAME of a NetworkPolicy, or the name of another policy.",
		Args:  cobra.ExactArgs(1),
	}
	file, socket, form := c.Flags().String("file", "", policyFileUsage), socketFlag(c), formatFlag(c)
	tier := c.Flags().String("tier", "", "of which tier, where several policies have the name")
	c.RunE = func(c *cobra.Command, args []string) error {
		p, err := policiesOf(c.Context(), *file, *socket)
		if err != nil {
			return err
		}
		var found []shownPolicy
		for _, l := range p.Policies {
			if l.Policy == args[0] && (*tier == "" || l.Tier == *tier) {
				found = append(found, shownPolicy{l, countsOf(p, l)})
			}
		}
		switch len(found) {
		case 1:
			return show(c.OutOrStdout(), *form, found[0], func(out io.Writer) { printPolicy(out, found[0]) })
		case 0:
			return usageError{fmt.Errorf("policy: there is no policy %q: `weft policy list` has all", args[0])}
		}
		return usageError{fmt.Errorf("policy: %d policies are called %q: say of which --tier", len(found), args[0])}
	}
	return c
}

// shownPolicy is a policy and what it did to packets on the daemon's node.
type shownPolicy struct {
	policy.Listed
	Counts []api.PolicyCounted `json:"counts"` // denied ones, too
}

// countsOf are the counters that a policy has a part in: what no rule allowed is of all that isolate the pod.
func countsOf(p api.Policies, l policy.Listed) []api.PolicyCounted {
	counts := []api.PolicyCounted{}
	add := func(c api.PolicyCounted) {
		if c.Tier == l.Tier && slices.Contains(strings.Split(c.Policy, ", "), l.Policy) {
			counts = append(counts, c)
		}
	}
	for _, d := range p.Denied {
		add(api.PolicyCounted{What: "denied", Tier: d.Tier, Policy: d.Policy, Rule: d.Rule, Packets: d.Packets})
	}
	for _, c := range p.Counted {
		add(c)
	}
	return counts
}

func printPolicy(out io.Writer, p shownPolicy) {
	staged := ""
	if p.Staged {
		staged = ", staged: it decides nothing"
	}
	fmt.Fprintf(out, "%s %s, tier %s (order %d), priority %d%s\n", p.Kind, p.Policy, p.Tier, p.Order, p.Priority, staged)
	fmt.Fprintf(out, "selects: %s\n", orDash(strings.Join(slices.Concat(p.Pods, named("node ", p.Nodes)), ", ")))
	if len(p.Isolates) > 0 {
		fmt.Fprintf(out, "isolates: %s: what no rule allows is denied\n", strings.Join(p.Isolates, ", "))
	}
	row(out, "RULE", "ACTION", "PEERS", "PORTS", "PACKETS")
	for _, r := range p.Rules {
		peers, ports := "everybody", "all"
		if len(r.Peers) > 0 {
			peers = strings.Join(r.Peers, "; ")
		}
		if len(r.Ports) > 0 {
			ports = strings.Join(r.Ports, ", ")
		}
		row(out, r.Rule, r.Action, peers, ports, packetsOf(p.Counts, r.Rule))
	}
	if text := packetsOf(p.Counts, ""); text != "-" {
		row(out, "no rule", "-", "-", "-", text)
	}
}

func named(prefix string, names []string) (list []string) {
	for _, n := range names {
		list = append(list, prefix+n)
	}
	return list
}

// packetsOf is what a rule did to packets: "" = what no rule matched.
func packetsOf(counts []api.PolicyCounted, rule string) string {
	var list []string
	for _, c := range counts {
		if c.Rule == rule {
			list = append(list, fmt.Sprintf("%d %s", c.Packets, c.What))
		}
	}
	return orDash(strings.Join(list, ", "))
}

func printPolicies(out io.Writer, p api.Policies, offline bool) {
	switch {
	case offline:
	case !p.Enabled:
		fmt.Fprintln(out, "network policy is off on this node (policy.enabled)")
		return
	case p.Since.IsZero():
		fmt.Fprintln(out, "nothing is in force yet")
	default:
		fmt.Fprintf(out, "%s, in force since %s\n", p.File, p.Since.Format(time.RFC3339))
	}
	if p.Problem != "" {
		fmt.Fprintf(out, "problem: %s\n", p.Problem)
	}
	for _, odd := range p.Odd {
		fmt.Fprintf(out, "problem: %s\n", odd)
	}
	row(out, "POLICY", "TIER", "PRIORITY", "ISOLATES", "RULES", "PODS AND NODES")
	for _, l := range p.Policies {
		tier := l.Tier
		if l.Staged {
			tier += " (staged)"
		}
		row(out, l.Policy, tier, l.Priority, orDash(strings.Join(l.Isolates, ",")), len(l.Rules), orDash(strings.Join(slices.Concat(l.Pods, named("node ", l.Nodes)), ",")))
	}
	if len(p.Denied) > 0 {
		fmt.Fprintln(out)
		row(out, "DENIED BY", "TIER", "RULE", "PACKETS")
		for _, d := range p.Denied {
			row(out, orDash(d.Policy), d.Tier, orDash(d.Rule), d.Packets)
		}
	}
	if p.Ended > 0 {
		fmt.Fprintf(out, "\nconnections that stood and that a change denied: %d\n", p.Ended)
	}
	if len(p.Counted) > 0 {
		fmt.Fprintln(out)
		row(out, "COUNTED BY", "TIER", "RULE", "WHAT", "PACKETS")
		for _, c := range p.Counted {
			row(out, c.Policy, c.Tier, orDash(c.Rule), c.What, c.Packets)
		}
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// errDenied is the answer of `weft policy explain` in its exit code.
var errDenied = errors.New("policy: the connection is denied")

func newPolicyExplainCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "explain SRC DST PORT",
		Short: "Whether one end may reach the other, by which rule, and what would have to change",
		Long: `SRC and DST are NAMESPACE/POD or addresses, behind all address translation; PORT is the destination's: 80, tcp/80,
udp/53, sctp/9, or icmp, or another protocol's number as proto/47. Pods of two families are judged in each. Exit
code 1 when the connection is denied.

The daemon answers by the policies in force. With --file a file is read and nothing else: no daemon is
asked, and what it says need not be in force anywhere.`,
		Example: "  weft policy explain shop/web shop/db tcp/5432\n  weft policy explain --file policies.yaml 192.0.2.7 shop/web 80",
		Args:    cobra.ExactArgs(3),
	}
	file, socket, form := c.Flags().String("file", "", policyFileUsage), socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var answers []policy.Explained
		if *file != "" {
			w, err := readPolicies(*file)
			if err != nil {
				return err
			}
			if answers, err = w.Explain(args[0], args[1], args[2]); err != nil {
				return usageError{err}
			}
		} else {
			client := api.NewClient(*socket)
			defer client.Close()
			var err error
			if answers, err = client.Explain(c.Context(), args[0], args[1], args[2]); err != nil {
				return err
			}
		}
		if err := show(c.OutOrStdout(), *form, answers, func(out io.Writer) { printExplained(out, answers) }); err != nil {
			return err
		}
		for _, a := range answers {
			if !a.Allowed {
				return errDenied
			}
		}
		return nil
	}
	return c
}

func printExplained(out io.Writer, answers []policy.Explained) {
	yes := map[bool]string{true: "yes", false: "no"}
	for i, a := range answers {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s (%s → %s): %s\n", policy.Traffic{Src: a.Src, Dst: a.Dst, Protocol: a.Protocol, Port: a.Port}, a.SrcName, a.DstName,
			map[bool]string{true: "allowed", false: "denied"}[a.Allowed])
		for _, s := range a.Ends {
			fmt.Fprintf(out, "  %s of %s: %s\n", s.Direction, s.End(), s.Text)
			for _, r := range s.Asked {
				fmt.Fprintf(out, "    %s %s %s: %s; peer: %s, port: %s\n", r.Tier, r.Policy, r.Rule, r.Action, yes[r.Peer], yes[r.Port])
			}
			for _, n := range s.Notes {
				fmt.Fprintf(out, "    %s\n", n)
			}
			if s.Remedy != "" {
				fmt.Fprintf(out, "    remedy: %s\n", s.Remedy)
			}
		}
	}
}
