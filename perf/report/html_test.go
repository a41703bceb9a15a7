package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"weft/perf/history"
	"weft/perf/probe"
	"weft/perf/result"
)

// hostile is a name that closes everything it could be inside of.
const hostile = `x"></title></desc></text></svg></td><script>alert(1)</script><img src=http://192.0.2.1/>'--><!--`

func rich() *result.Result {
	r := example()
	r.Schema = result.Schema
	r.Command = []string{"weft", "lab", "run", "--contenders", "bare,tun", "--tests", "it's"}
	r.Details = []result.Detail{
		{Contender: "bare", Test: "tcp-rr", Params: probe.Params{"family": 4, "size": 64}, Latency: curveOf(40)},
		{Contender: "tun", Test: "tcp-rr", Params: probe.Params{"family": 4, "size": 64}, Latency: curveOf(60),
			Stages: []result.Stage{
				{Node: "a", Lane: "out/0", Stage: "route", Packets: 1000, NanosecondsPerPacket: 21, Samples: []float64{20, 21, 22}},
				{Node: "a", Lane: "out/0", Stage: "send udp", Packets: 1000, NanosecondsPerPacket: 900, Samples: []float64{900}},
				{Node: "b", Lane: "out/0", Stage: "route", Packets: 1, NanosecondsPerPacket: 77777},
			}},
		{Contender: "tun", Test: "udp-rate", Params: probe.Params{"family": 4, "size": 64}, Notes: []string{"no long trial passed"},
			Trials: []probe.Trial{{Offered: 2e5, Rate: 1e5, Loss: .5}, {Offered: 9e4, Rate: 9e4, Confirmed: true}}},
	}
	return r
}

func curveOf(middle float64) []result.Quantile {
	return []result.Quantile{{Quantile: 0, Us: middle - 9, Low: middle - 9, High: middle - 9}, {Quantile: .5, Us: middle, Low: middle - 1, High: middle + 1},
		{Quantile: .99, Us: 2 * middle, Low: middle, High: 3 * middle}, {Quantile: 1, Us: 1e5, Low: 1e5, High: 1e5}}
}

// render makes the page and parses it, strictly: every tag that was opened was closed by its own name.
func render(t *testing.T, r *result.Result) (string, *html.Node) {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, r); err != nil {
		t.Fatal(err)
	}
	balanced(t, b.String())
	doc, err := html.Parse(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), doc
}

// TestOverTime: past runs are drawn with a gap where there is no figure, in a page that closes what it opens whatever names say; and more runs than there are points.
func TestOverTime(t *testing.T) {
	r := rich()
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, runs := range []int{1, 5, 1000} {
		var past []history.Entry
		for i := range runs {
			e := history.Of(began.Add(time.Duration(i)*time.Hour), time.Minute, r, nil)
			if i == 2 {
				e = history.Of(e.At, time.Minute, nil, errors.New("an agent is away: "+hostile))
			}
			for k := range e.Figures {
				e.Figures[k].Path = result.Path("a", hostile)
				e.Figures[k].InnerMTU -= i / 3
			}
			past = append(past, e)
		}
		var b bytes.Buffer
		if err := HTML(&b, r, past...); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		balanced(t, text)
		if strings.Contains(text, "<script") || strings.Contains(text, "<img") || strings.Contains(text, "NaN") {
			t.Errorf("%d runs: a name was not escaped, or a point is nowhere", runs)
		}
		for _, want := range []string{"Over time", fmt.Sprintf("%d runs since 2026-01-02 03:04 UTC", runs), `id="over-0-0-t"`} {
			if !strings.Contains(text, want) {
				t.Errorf("%d runs: no %q", runs, want)
			}
		}
		if gap := strings.Contains(text, "an agent is away"); gap != (runs == 5) { // of many the newest are listed
			t.Errorf("%d runs: the failure is shown: %v", runs, gap)
		}
		if runs == 5 && !strings.Contains(text, "4 of 5") {
			t.Error("the table does not count the gap")
		}
	}
}

func balanced(t *testing.T, text string) {
	t.Helper()
	void := []string{"meta", "br", "img", "link", "hr", "input"}
	var open []string
	z := html.NewTokenizer(strings.NewReader(text))
	for {
		switch kind := z.Next(); kind {
		case html.ErrorToken:
			if len(open) > 0 {
				t.Errorf("never closed: %v", open)
			}
			return
		case html.StartTagToken:
			if name, _ := z.TagName(); !slices.Contains(void, string(name)) {
				open = append(open, string(name))
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			if len(open) == 0 || open[len(open)-1] != string(name) {
				t.Fatalf("</%s> closes %v", name, open)
			}
			open = open[:len(open)-1]
		}
	}
}

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

func all(doc *html.Node, tag string) []*html.Node {
	var list []*html.Node
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && n.Data == tag {
			list = append(list, n)
		}
	}
	return list
}

func textOf(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		}
	}
	return b.String()
}

// TestPage holds the page to what a screen reader and a machine without network need.
func TestPage(t *testing.T) {
	text, doc := render(t, rich())
	ids := map[string]bool{}
	level := 0
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if id := attr(n, "id"); id != "" {
			if ids[id] {
				t.Errorf("two elements are called %s", id)
			}
			ids[id] = true
		}
		if len(n.Data) == 2 && n.Data[0] == 'h' && n.Data[1] >= '1' && n.Data[1] <= '6' {
			if now := int(n.Data[1] - '0'); now > level+1 {
				t.Errorf("heading %q is of level %d after %d", textOf(n), now, level)
			} else {
				level = now
			}
		}
		if n.Data == "script" || n.Data == "link" || n.Data == "img" || n.Data == "iframe" {
			t.Errorf("the page has a <%s>", n.Data)
		}
		for _, key := range []string{"href", "src", "srcset", "action", "xlink:href"} {
			if v := attr(n, key); v != "" && !strings.HasPrefix(v, "#") {
				t.Errorf("<%s %s=%q> leads out of the page", n.Data, key, v)
			}
		}
	}
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		for _, key := range []string{"aria-labelledby", "href"} {
			for _, id := range strings.Fields(strings.ReplaceAll(attr(n, key), "#", "")) {
				if !ids[id] {
					t.Errorf("<%s %s> names %s, which is not there", n.Data, key, id)
				}
			}
		}
	}
	for _, svg := range all(doc, "svg") {
		if attr(svg, "aria-hidden") == "true" {
			continue
		}
		if attr(svg, "role") != "img" || len(all(svg, "title")) != 1 || len(textOf(all(svg, "desc")[0])) < 20 {
			t.Errorf("a drawing without role, title or description: %v", svg.Attr)
		}
		if svg.Parent.Data != "figure" || len(all(svg.Parent, "figcaption")) != 1 {
			t.Error("a drawing outside a figure with a caption")
		}
	}
	if n := len(all(doc, "figure")); n != 1+2+1+2+1 { // a test, its latency, losses, processor time, stages
		t.Errorf("the page has %d figures", n)
	}
	for _, table := range all(doc, "table") {
		if len(all(table, "caption")) != 1 {
			t.Error("a table without caption")
		}
		columns := 0
		for _, row := range all(table, "tr") {
			cells := 0
			for c := range row.ChildNodes() {
				if c.Type == html.ElementNode {
					cells++
				}
			}
			if columns == 0 {
				columns = cells
			}
			if cells != columns {
				t.Errorf("table %q: a row of %d cells under %d heads", textOf(all(table, "caption")[0]), cells, columns)
			}
		}
		for _, th := range all(table, "th") {
			if s := attr(th, "scope"); s != "col" && s != "row" {
				t.Errorf("head %q is of neither column nor row", textOf(th))
			}
		}
	}
	for _, bad := range []string{"url(", "@import", "NaN", "Inf", "%!", "http://", "https://", "ZgotmplZ"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, want := range []string{"prefers-color-scheme:dark", "@media print", "width=device-width", "Round trip, median",
		"failed: xdp, tcp-stream", "wireguard: this kernel", "no long trial passed", "layout split", "1 of 3 accounts", "send udp", "p99.9"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(text, "77777") {
		t.Error("a lane that had one packet in 1000 is shown")
	}
	if code := all(doc, "pre"); len(code) != 1 || textOf(code[0]) != `weft lab run --contenders bare,tun --tests 'it'\''s'` {
		t.Errorf("the command reads %q", textOf(code[0]))
	}
	again, _ := render(t, rich())
	if again != text {
		t.Error("the same result gives another page")
	}
}

// TestVerdict reads the sentence.
func TestVerdict(t *testing.T) {
	_, doc := render(t, rich())
	cards := all(doc, "article")
	want := "tunA TCP round trip is 46 % longer (43 to 48 %).The inner MTU is 1450 bytes: no difference."
	if len(cards) != 1 || textOf(cards[0]) != want {
		t.Errorf("%d cards, %q, want %q", len(cards), textOf(cards[0]), want)
	}
	same := rich()
	for i := range same.Results {
		same.Results[i].Samples = []float64{10, 11, 10}
		if same.Results[i].Contender == "tun" {
			same.Results[i].Samples = []float64{11, 10, 10}
		}
	}
	if text, _ := render(t, same); !strings.Contains(text, "A TCP round trip is no different (0.909–1.10 ×)") {
		t.Error("no difference is not said")
	}
	alone := rich()
	alone.Results = alone.Results[2:]
	if text, _ := render(t, alone); !strings.Contains(text, "No verdict") {
		t.Error("a verdict without anything to compare with")
	}
}

// TestPageOfLittle: results of before there were details, of nothing, and of zeros, make pages too.
func TestPageOfLittle(t *testing.T) {
	var published result.Result
	data, err := os.ReadFile("../result/testdata/result.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &published); err != nil {
		t.Fatal(err)
	}
	zero := rich()
	for i := range zero.Results {
		zero.Results[i] = row(zero.Results[i].Contender, zero.Results[i].Metric, zero.Results[i].Unit, 0, 0, 0)
		zero.Results[i].CPU = result.CPU{}
	}
	for name, r := range map[string]*result.Result{"published": &published, "empty": {}, "example": example(), "zero": zero} {
		if text, _ := render(t, r); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%s: the page has figures that are none", name)
		}
	}
}

// TestHostileNames: whatever a result says is text and never markup.
func TestHostileNames(t *testing.T) {
	_, plain := render(t, rich())
	evil := rich()
	evil.Schema, evil.Settings.Layout, evil.Settings.Load = hostile, hostile, hostile
	evil.Hosts = []result.Host{{Name: hostile, Kernel: hostile, CPU: hostile, Mitigations: hostile, Go: hostile, Weft: hostile, TCPCongestion: hostile}}
	evil.Command = []string{hostile}
	for i := range evil.Results {
		r := &evil.Results[i]
		if r.Contender != baseline {
			r.Contender += hostile
		}
		r.Test, r.Metric, r.Unit = r.Test+hostile, r.Metric+hostile, r.Unit+hostile
		r.CPU.Processes = map[string]float64{hostile: 1}
	}
	for i := range evil.Details {
		d := &evil.Details[i]
		d.Contender, d.Test, d.Notes = d.Contender+hostile, d.Test+hostile, []string{hostile}
		for k := range d.Stages {
			d.Stages[k].Node, d.Stages[k].Lane, d.Stages[k].Stage = hostile, hostile, hostile+d.Stages[k].Stage
		}
	}
	evil.Failed = []result.Failure{{Contender: hostile, Test: hostile, Reason: hostile}}
	text, doc := render(t, evil)
	if len(all(doc, "script"))+len(all(doc, "img")) > 0 || strings.Contains(text, "<script") {
		t.Error("a name became markup")
	}
	if len(all(doc, "figure")) < len(all(plain, "figure"))-1 {
		t.Error("a name took figures away")
	}
}

func TestBimodal(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		is      bool
	}{
		{[]float64{10, 10.2, 20, 20.1, 19.9}, true}, {[]float64{20, 10, 20, 10}, true},
		{[]float64{10, 12, 14, 16, 18}, false}, {[]float64{10, 10, 10, 10, 20}, false}, // one outlier is no mode
		{[]float64{10, 10, 10.5, 10.5}, false}, {[]float64{5, 5, 5, 5}, false}, {nil, false}, {[]float64{1, 2}, false},
	} {
		if lower, upper, is := Bimodal(c.samples); is != c.is {
			t.Errorf("%v: %v (%v, %v)", c.samples, is, lower, upper)
		}
	}
	r := rich()
	r.Results[0] = row("bare", "rate", "1/s", 10e3, 10.1e3, 20e3, 20.2e3, 20.1e3)
	if text, _ := render(t, r); !strings.Contains(text, "bare is bimodal") {
		t.Error("a bimodal row is not called so")
	}
}

// exampleResult is a real run, the one whose page is in the documentation.
func exampleResult(t *testing.T) *result.Result {
	t.Helper()
	r, err := result.Read("../../docs/example-report/result.json")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestExampleReport: the page in the documentation is what this version makes of its result.
func TestExampleReport(t *testing.T) {
	text, _ := render(t, exampleResult(t))
	published, err := os.ReadFile("../../docs/example-report/report.html")
	if err != nil {
		t.Fatal(err)
	}
	if text != string(published) {
		t.Error("docs/example-report/report.html is of another version: go run ./cmd/weft lab report docs/example-report/result.json -o docs/example-report/report.html, and look at it")
	}
}

func TestFit(t *testing.T) {
	for name, want := range map[string]string{"tun-gso+chacha20-poly1305": "tun-gso+chacha20-poly1305", strings.Repeat("é", 80): strings.Repeat("é", 33) + "…"} {
		if got := fit(name, "bimodal  4.68 Gbit/s"); got != want {
			t.Errorf("%s became %s, want %s", name, got, want)
		}
	}
}
