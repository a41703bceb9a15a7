package sealed

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "key")
	if _, err := LoadKey(file); !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "weft keys gen") {
		t.Errorf("a missing key: %v", err)
	}
	made, err := GenerateKey(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", info, err)
	}
	if loaded, err := LoadKey(file); err != nil || loaded != made {
		t.Errorf("loaded another key than was made: %v", err)
	}
	if _, err := GenerateKey(file); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a key was overwritten: %v", err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
	for _, text := range []string{"", "no base64!", "AAAA", strings.Repeat("A", 5000)} {
		bad := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKey(bad); err == nil {
			t.Errorf("%.10q was taken for a key", text)
		}
	}
}

// TestPublicKey: the ephemeral keys of the Noise vectors.
func TestPublicKey(t *testing.T) {
	private := [32]byte(unhex(t, "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"))
	public, err := PublicKey(private)
	if want := [32]byte(unhex(t, "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254")); err != nil || public != want {
		t.Errorf("public key %x, %v", public, err)
	}
	if back, err := DecodeKey(EncodeKey(public)); err != nil || back != public {
		t.Errorf("a key does not survive being written: %v", err)
	}
}

// TestPassword: node keys differ by password and by name, and are what they were: nodes of other
// versions derive the same.
func TestPassword(t *testing.T) {
	p := NewPassword([]byte("correct horse battery staple"))
	q := NewPassword([]byte("correct horse battery stapler"))
	if p.NodeKey("a") == p.NodeKey("b") || p.NodeKey("a") == q.NodeKey("a") || p.PSK() == q.PSK() || p.PSK() == p.NodeKey("a") {
		t.Error("keys that should differ are equal")
	}
	file := filepath.Join(t.TempDir(), "psk")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte(text), mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("  correct horse battery staple\n", 0o600)
	if loaded, err := LoadPassword(file); err != nil || *loaded != *p {
		t.Errorf("white space around a password counts: %v", err)
	}
	write("short\n", 0o600)
	if _, err := LoadPassword(file); err == nil {
		t.Error("a password of five bytes was taken")
	}
	write("correct horse battery staple\n", 0o644)
	if _, err := LoadPassword(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a password that others may read: %v", err)
	}
	if _, err := LoadPassword(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no password file is no error")
	}
}
