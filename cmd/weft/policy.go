package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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
	return api.Policies{File: file, Pods: len(w.Pods()), Policies: w.List(), Denied: []api.PolicyDenied{}}, nil
}

func newPolicyShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show POLICY",
		Short: "One policy in words: whom it selects, and its rules in the order in which they are asked",
		Long:  "POLICY is NAMESPACE/NAME, or the name of a ClusterNetworkPolicy.",
		Args:  cobra.ExactArgs(1),
	}
	file, socket, form := c.Flags().String("file", "", policyFileUsage), socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		p, err := policiesOf(c.Context(), *file, *socket)
		if err != nil {
			return err
		}
		for _, l := range p.Policies {
			if l.Policy == args[0] {
				return show(c.OutOrStdout(), *form, l, func(out io.Writer) { printPolicy(out, l) })
			}
		}
		return usageError{fmt.Errorf("policy: there is no policy %q: `weft policy list` has all", args[0])}
	}
	return c
}

func printPolicy(out io.Writer, l policy.Listed) {
	fmt.Fprintf(out, "%s, tier %s, priority %d\n", l.Policy, l.Tier, l.Priority)
	fmt.Fprintf(out, "selects: %s\n", orDash(strings.Join(l.Pods, ", ")))
	if len(l.Isolates) > 0 {
		fmt.Fprintf(out, "isolates: %s: what no rule allows is denied\n", strings.Join(l.Isolates, ", "))
	}
	row(out, "RULE", "ACTION", "PEERS", "PORTS")
	for _, r := range l.Rules {
		peers, ports := "everybody", "all"
		if len(r.Peers) > 0 {
			peers = strings.Join(r.Peers, "; ")
		}
		if len(r.Ports) > 0 {
			ports = strings.Join(r.Ports, ", ")
		}
		row(out, r.Rule, r.Action, peers, ports)
	}
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
	row(out, "POLICY", "TIER", "PRIORITY", "ISOLATES", "RULES", "PODS")
	for _, l := range p.Policies {
		row(out, l.Policy, l.Tier, l.Priority, orDash(strings.Join(l.Isolates, ",")), len(l.Rules), orDash(strings.Join(l.Pods, ",")))
	}
	if len(p.Denied) > 0 {
		fmt.Fprintln(out)
		row(out, "DENIED BY", "TIER", "RULE", "PACKETS")
		for _, d := range p.Denied {
			row(out, orDash(d.Policy), d.Tier, orDash(d.Rule), d.Packets)
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
