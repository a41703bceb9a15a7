package netns_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/internal/nettest"
)

// damaging is a contender of plain routes that writes over one byte of every 50th large packet, but the control connections'. On a path of
// veths checksums are finished by nobody, so that the receiver takes them for right.
const damaging = `#!/bin/sh
set -eu
case $1 in
up)
	echo "$WEFT_PEERS" | while read -r name index endpoint4 endpoint6 prefixes; do
		[ -n "$name" ] || continue
		for prefix in $prefixes; do
			via=$endpoint4
			case $prefix in *:*) via=$endpoint6 ;; esac
			ip route add "$prefix" via "$via"
		done
	done
	nft add table inet damage
	nft add chain inet damage through '{ type filter hook forward priority 0; }'
	nft add rule inet damage through tcp sport 8479 accept # not "sport != 8479 dport != 8479": nft 1.0.6 makes one comparison of both of it
	nft add rule inet damage through tcp dport 8479 accept
	nft add rule inet damage through meta l4proto tcp meta length '> 500' numgen inc mod 50 == 49 @th,480,8 set 0x55
	nft add rule inet damage through udp sport != 8479 meta length '> 500' numgen inc mod 50 == 49 @th,480,8 set 0x55
	;;
addresses)
	echo "mtu $WEFT_MTU"
	for prefix in $WEFT_PREFIXES; do echo "prefix $prefix"; done
	;;
esac
`

// TestCorrupt: a contender that delivers other bytes than were sent fails the run as corrupt, in its exit code, result, table and page, and not as
// one that loses packets; the others are not touched by it.
func TestCorrupt(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "nft")
	file := filepath.Join(t.TempDir(), "damaging")
	if err := os.WriteFile(file, []byte(damaging), 0o700); err != nil {
		t.Fatal(err)
	}
	l := start(t, "--contenders", "bare,exec:"+file, "--tests", "tcp-stream,tcp-rr:size=600:family=6,udp-rr:size=600,udp-stream:size=600:rate=1e7:family=6",
		"--duration", "300ms", "--repeat", "2", "--warmup", "0", "--out", "results")
	if code := l.end(); code != 5 {
		t.Fatalf("exit code %d, want 5:\n%s\n%s", code, l.err.Bytes(), l.out.Bytes())
	}
	if !strings.Contains(l.err.String(), "corrupt: ") || !strings.Contains(l.err.String(), "bytes arrived other than they were sent: exec:") {
		t.Errorf("said %q", l.err.String())
	}
	r := read(t, filepath.Join(l.Dir, "results", "result.json"))
	if len(r.Failed)+len(r.Unsupported) > 0 {
		t.Errorf("failed %+v, unsupported %+v", r.Failed, r.Unsupported)
	}
	for _, name := range []string{"bare", "exec:" + file} {
		tests := 0
		for _, i := range r.Integrity {
			if i.Contender != name {
				continue
			}
			tests++
			if i.Verified == 0 || i.OK != (name == "bare") || i.OK != (i.Corrupt == 0) || i.OK != (len(i.Damage) == 0) {
				t.Errorf("%+v", i)
			}
		}
		if tests != 4 {
			t.Errorf("%s: %d accounts of 4 tests", name, tests)
		}
	}
	for _, b := range r.Conservation {
		if !b.OK || b.Contender != "bare" && b.PathBalance != nil && b.Corrupt == 0 {
			t.Errorf("does not add up: %+v %+v", b, b.PathBalance)
		}
	}
	for _, row := range r.Results {
		if row.Metric == "loss" && row.Median > 0 {
			t.Errorf("%s: corrupt packets are a loss of %v", row.Contender, row.Median)
		}
	}
	for _, file := range []string{"table.txt", "report.html"} {
		if data, err := os.ReadFile(filepath.Join(l.Dir, "results", file)); err != nil || !strings.Contains(string(data), "corrupt: exec:") {
			t.Errorf("%s does not say it: %v", file, err)
		}
	}
}
