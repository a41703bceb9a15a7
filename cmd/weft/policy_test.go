package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"weft/policy"
)

// TestPolicyCommands: the example's connections are explained in words and in JSON, with the verdict in the exit code.
func TestPolicyCommands(t *testing.T) {
	const file = "../../examples/policies/shop.yaml"
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"explain --file F shop/web shop/db tcp/5432", exitDone, []string{"allowed by NetworkPolicy shop/db, rule ingress[0]", "10.244.1.5 → 10.244.2.7 TCP 5432", "fd00:10:244:1::5 → fd00:10:244:2::7 TCP 5432"}},
		{"explain --file F lab/client shop/db 5432", exitFailed, []string{"denied: isolated by NetworkPolicy shop/db, shop/deny-all, of which no rule allows it", "remedy: allow TCP 5432 from pod lab/client"}},
		{"explain --file F lab/client shop/web 23", exitFailed, []string{`denied by ClusterNetworkPolicy no-telnet of tier Admin, rule ingress[0] "telnet"`}},
		{"explain --file F 192.0.2.9 lab/client icmp", exitDone, []string{"allowed: no policy is about it"}},
		{"explain --file F shop/web shop/none 80", exitUsage, []string{"there is no pod shop/none among the workloads"}},
		{"explain --file F shop/web 192.0.2.1 gre", exitUsage, []string{`"gre" is not a port`}},
		{"explain --file F 10.0.0.1 2001:db8::1 80", exitUsage, []string{"no address of one family"}},
		{"explain --file /nowhere a b 80", exitUsage, []string{"no such file"}},
		{"explain --socket /nowhere/sock shop/web shop/db 80", exitUnreachable, []string{"/nowhere/sock"}},
		{"explain shop/web shop/db", exitUsage, []string{"accepts 3 arg"}},
		{"show --file F shop/db", exitDone, []string{"selects: shop/db", "isolates: ingress", "ingress[0]  Accept  pods with app=web of namespace shop  TCP 5432"}},
		{"show --file F no-telnet", exitDone, []string{"tier Admin (order 1000), priority 10", `ingress[0] "telnet"`, "Deny", "all pods of all namespaces", "TCP 23"}},
		{"show --file F shop/none", exitUsage, []string{"there is no policy"}},
		{"explain --file O 203.0.113.9 shop/web 8080", exitFailed, []string{"denied by Policy hostile of tier security, rule ingress[1]", "    logged by Policy hostile of tier security, rule ingress[0]"}},
		{"explain --file O shop/web 198.51.100.3 80", exitDone, []string{"allowed: no policy is about it", "    would be denied by Policy offices-by-https of tier security, rule egress[1]"}},
		{"explain --file O shop/web 192.0.2.1 22", exitDone, []string{"ingress of node alpha: allowed: such ports of nodes stay open whatever policies say"}},
		{"explain --file O ci/deployer 192.0.2.1 8443", exitDone, []string{`allowed by Policy workers of tier nodes, rule ingress[1] "deploy"`}},
		{"explain --file O shop/web 192.0.2.1 8443", exitFailed, []string{"denied by tier nodes, which denies what no rule of its policies allows: workers", "remedy: allow TCP 8443 from pod shop/web in a rule for ingress of a policy of tier nodes that selects node alpha"}},
		{"show --file O workers", exitDone, []string{"Policy workers, tier nodes (order 100), priority 10", "selects: node alpha", "networks of set offices", "pods of service accounts deployer of namespaces with kubernetes.io/metadata.name=ci"}},
		{"show --file O offices-by-https", exitDone, []string{"staged: it decides nothing"}},
		{"list --file O", exitDone, []string{"failsafe", "security (staged)", "node alpha"}},
		{"list --file F", exitDone, []string{"shop/db", "NetworkPolicy", "no-telnet", "Admin", "shop/web,shop/db"}},
	} {
		out, code := policyCommand("policy "+c.args, file)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", c.args, code, c.code, out)
		}
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: no %q in:\n%s", c.args, w, out)
			}
		}
	}
	out, _ := policyCommand("policy explain -o json --file F lab/client shop/db 5432", file)
	var answers []policy.Explained
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&answers); err != nil || len(answers) != 2 || answers[0].Allowed || len(answers[0].Ends) != 2 || answers[0].Ends[1].Remedy == "" {
		t.Errorf("%v: %s", err, out)
	}
}

// policyCommand runs a command line in which F stands for the file, and O for the example of our own kind.
func policyCommand(line, file string) (output string, code int) {
	args := strings.Fields(line)
	for i := range args {
		switch args[i] {
		case "F":
			args[i] = file
		case "O":
			args[i] = filepath.Join(filepath.Dir(file), "own.yaml")
		}
	}
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := execute(context.Background(), root, &out)
	return out.String(), exitCode(err, false)
}
