package watch

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// named finds what a text calls metrics of weft.
var named = regexp.MustCompile(`\bweft_[a-z0-9_]+`)

// onlyKnown reports metrics that an expression names and that nobody tells, and labels that they do not have.
func onlyKnown(t *testing.T, where, expr string) {
	t.Helper()
	var labels []string
	for _, name := range named.FindAllString(expr, -1) {
		i := slices.IndexFunc(Metrics(), func(m Metric) bool { return m.Name == name })
		if i < 0 {
			t.Errorf("%s names %s, which there is not", where, name)
			continue
		}
		labels = append(labels, Metrics()[i].Labels...)
	}
	for _, m := range regexp.MustCompile(`([a-z]+) *(?:=~|!~|!=|=)"`).FindAllStringSubmatch(expr, -1) {
		if !slices.Contains(labels, m[1]) {
			t.Errorf("%s selects by %s, which none of its metrics has: %s", where, m[1], expr)
		}
	}
}

// TestDashboard: Grafana's dashboard is JSON, every query names metrics that there are, and every metric that changes with the path is shown.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../deploy/grafana/weft-bench.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID string
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || len(d.Panels) == 0 {
		t.Errorf("%+v", d)
	}
	variables := []string{"__all"}
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		onlyKnown(t, "variable "+v.Name, v.Definition)
	}
	ids, all := map[int]bool{}, ""
	for i, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.Type == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for _, q := range d.Panels[:i] {
			if a, b := p.GridPos, q.GridPos; a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %q and %q lie over each other", p.Title, q.Title)
			}
		}
		for _, target := range p.Targets {
			onlyKnown(t, "panel "+p.Title, target.Expr)
			all += target.Expr + "\n"
			for _, v := range regexp.MustCompile(`\$([a-z_]+)`).FindAllStringSubmatch(target.Expr, -1) {
				if !slices.Contains(variables, v[1]) {
					t.Errorf("panel %s: no variable %s", p.Title, v[1])
				}
			}
		}
	}
	for _, name := range []string{"throughput_bytes_per_second", "packets_per_second", "round_trip_seconds", "loss_ratio", "path_mtu_bytes", "measured"} {
		if !strings.Contains(all, "weft_bench_"+name) {
			t.Errorf("no panel shows %s", name)
		}
	}
}

// TestAlerts: every alert is about metrics that there are, and says something.
func TestAlerts(t *testing.T) {
	text, err := os.ReadFile("../../deploy/prometheus/weft-bench-alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`(?m)^      - alert: (\w+)\n        expr: (.+)\n(?:        for: \w+\n)?        labels: \{severity: (?:warning|critical)\}\n        annotations: \{summary: ".+"\}$`).FindAllStringSubmatch(string(text), -1)
	if n := strings.Count(string(text), "- alert:"); n == 0 || len(rules) != n {
		t.Errorf("%d of %d alerts are whole", len(rules), n)
	}
	for _, r := range rules {
		onlyKnown(t, r[1], r[2])
		if !named.MatchString(r[2]) {
			t.Errorf("%s is about nothing", r[1])
		}
		if strings.Count(r[2], "(") != strings.Count(r[2], ")") || strings.Contains(r[2], ": ") || strings.Contains(r[2], " #") {
			t.Errorf("%s: %s", r[1], r[2])
		}
	}
}
