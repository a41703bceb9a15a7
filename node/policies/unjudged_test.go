package policies

import (
	"os"
	"path/filepath"
	"testing"
)

// TestIPVS: what the kernel tells of IPVS is understood (ip_vs_ctl.c, ip_vs_info_seq_show); without services it forwards nothing.
func TestIPVS(t *testing.T) {
	const head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
	for text, want := range map[string]int{head: 0, head + "TCP  0A600001:01BB rr \n  -> C0000201:192B      Masq    1      0          0\n": 1,
		head + "UDP  [fd00:0010:0096:0000:0000:0000:0000:000a]:0035 rr \n": 1} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "ip_vs"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := unjudged(dir); len(got) != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if got := unjudged(t.TempDir()); got != nil {
		t.Errorf("without IPVS: %v", got)
	}
}
