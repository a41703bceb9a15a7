package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"weft/internal/nettest"
)

// chromium runs a headless browser with a profile of its own and returns what it prints.
func chromium(t *testing.T, args ...string) string {
	t.Helper()
	nettest.RequireTool(t, "chromium")
	// Its sandbox does not start for root; it opens nothing here but our own pages.
	cmd := exec.CommandContext(t.Context(), "chromium", append([]string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server", "--user-data-dir=" + t.TempDir()}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium %v: %v\n%s", args, err, errs.Bytes())
	}
	return out.String()
}

// measured is what a page's frame says of it.
type measured struct {
	Width, ScrollWidth int
	Tallest            int // of the drawings
	SmallestText       float64
	Resources          []string
	Dark               bool
	Background, Ink    string
	Outside            []string // elements that stick out to the right, other than inside scrolling tables
}

// frame shows the report in a frame as wide as a phone or a desktop and measures it from outside, since the page itself
// runs no script.
const frame = `<!DOCTYPE html><body style="margin:0"><iframe id="f" src="/report.html" style="width:%dpx;height:900px;border:0"></iframe><pre id="out"></pre><script>
document.getElementById("f").onload = e => {
  const w = e.target.contentWindow, d = w.document, root = d.documentElement, body = w.getComputedStyle(d.body);
  const drawings = [...d.querySelectorAll("figure svg")];
  const m = {Width: root.clientWidth, ScrollWidth: Math.max(root.scrollWidth, d.body.scrollWidth), Resources: w.performance.getEntriesByType("resource").map(r => r.name),
    Dark: w.matchMedia("(prefers-color-scheme: dark)").matches, Background: body.backgroundColor, Ink: body.color,
    Tallest: Math.round(Math.max(...drawings.map(s => s.getBoundingClientRect().height))),
    SmallestText: Math.min(...drawings.flatMap(s => [...s.querySelectorAll("text")].map(x => parseFloat(w.getComputedStyle(x).fontSize) * s.getBoundingClientRect().width / 360))),
    Outside: [...d.querySelectorAll("main *, header *")].filter(x => !x.closest(".scroll") && x.getBoundingClientRect().right > root.clientWidth + 1).map(x => x.tagName + "." + x.getAttribute("class"))};
  document.getElementById("out").textContent = JSON.stringify(m);
};
</script>`

// TestBrowser looks at the page in a real browser: on a phone, on a desktop, in the dark and on paper.
func TestBrowser(t *testing.T) {
	long := exampleResult(t)
	for i, r := range long.Results {
		if r.Contender == "xdp" { // a name without a place to break
			long.Results[i].Contender = "exec:" + strings.Repeat("x", 120)
		}
	}
	var page bytes.Buffer
	if err := HTML(&page, long); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/report.html":
			_, _ = w.Write(page.Bytes())
		case "/390", "/1280":
			fmt.Fprintf(w, frame, map[string]int{"/390": 390, "/1280": 1280}[r.URL.Path])
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	look := func(path string, args ...string) (m measured) {
		t.Helper()
		dom := chromium(t, append(args, "--window-size=1400,1000", "--virtual-time-budget=10000", "--dump-dom", server.URL+path)...)
		doc, err := html.Parse(strings.NewReader(dom))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(textOf(all(doc, "pre")[0])), &m); err != nil {
			t.Fatalf("the browser says %q: %v", dom, err)
		}
		if m.ScrollWidth > m.Width || len(m.Outside) > 0 {
			t.Errorf("%s: %d pixels of content in %d; outside: %q", path, m.ScrollWidth, m.Width, m.Outside)
		}
		if len(m.Resources) > 0 {
			t.Errorf("%s: the page loads %q", path, m.Resources)
		}
		if m.Tallest < 50 || m.SmallestText < 9 {
			t.Errorf("%s: drawings up to %d pixels high, text down to %.1f", path, m.Tallest, m.SmallestText)
		}
		return m
	}
	phone := look("/390", "--blink-settings=preferredColorScheme=1")
	desktop := look("/1280", "--blink-settings=preferredColorScheme=1")
	dark := look("/390", "--blink-settings=preferredColorScheme=0")
	// The frame's scroll bar takes a few pixels of what a phone would show whole.
	if phone.Width > 390 || phone.Width < 360 || desktop.Width < 1250 {
		t.Errorf("measured in %d and %d pixels", phone.Width, desktop.Width)
	}
	if phone.Dark || !dark.Dark || phone.Background == dark.Background || phone.Ink == dark.Ink {
		t.Errorf("by day %s on %s, in the dark %s on %s", phone.Ink, phone.Background, dark.Ink, dark.Background)
	}

	file, pdf := filepath.Join(t.TempDir(), "report.html"), filepath.Join(t.TempDir(), "report.pdf")
	if err := os.WriteFile(file, page.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	chromium(t, "--print-to-pdf="+pdf, "--no-pdf-header-footer", "file://"+file)
	data, err := os.ReadFile(pdf)
	if err != nil || !bytes.HasPrefix(data, []byte("%PDF-")) || len(data) < 10000 {
		t.Errorf("on paper the page is %d bytes of %.5q: %v", len(data), data, err)
	}
}
