package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// meet has a server and a client with their identities meet, and returns what each says of it.
func meet(t *testing.T, g *gate, client *Identity) (server, near error) {
	t.Helper()
	a, b := tcpPair(t)
	done := make(chan error, 1)
	go func() {
		c, err := g.admit(t.Context(), a)
		if err == nil {
			_, err = c.Write([]byte("hello"))
		}
		a.Close()
		done <- err
	}()
	c, err := client.greet(t.Context(), b, "127.0.0.1")
	if err == nil {
		var got []byte
		if got, err = io.ReadAll(io.LimitReader(c, 5)); err == nil && string(got) != "hello" {
			t.Errorf("the client reads %q", got)
		}
		if c.ConnectionState().Version != tls.VersionTLS13 {
			t.Errorf("TLS version %x", c.ConnectionState().Version)
		}
	}
	b.Close()
	return <-done, err
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if a, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func secret(t *testing.T, text string) *Identity {
	t.Helper()
	i, err := identity([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// authority makes certificates; name is what they are for.
func authority(t *testing.T, now time.Time) (ca string, issue func(name string) (cert, key string)) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return write("ca", "CERTIFICATE", der), func(name string) (string, string) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, own.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalECPrivateKey(own)
		if err != nil {
			t.Fatal(err)
		}
		return write(name, "CERTIFICATE", der), write(name+".key", "EC PRIVATE KEY", private)
	}
}

func certificates(t *testing.T, ca string, issue func(string) (string, string)) *Identity {
	t.Helper()
	cert, key := issue(t.Name()[strings.LastIndex(t.Name(), "/")+1:] + "-leaf")
	i, err := FromCertificates(cert, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestIdentity: who has the same secret, or a certificate of the same authority, is let in, and nobody else; at either end.
func TestIdentity(t *testing.T) {
	ca, issue := authority(t, time.Now())
	other, issueOther := authority(t, time.Now())
	same, wrong := secret(t, "a secret of many bytes"), secret(t, "another secret of many bytes")
	for name, c := range map[string]struct {
		server, client *Identity
		ok             bool
	}{
		"the same secret":       {same, secret(t, "a secret of many bytes"), true},
		"another secret":        {same, wrong, false},
		"the same authority":    {certificates(t, ca, issue), certificates(t, ca, issue), true},
		"another authority":     {certificates(t, ca, issue), certificates(t, other, issueOther), false},
		"a secret, certificate": {same, certificates(t, ca, issue), false},
		"a certificate, secret": {certificates(t, ca, issue), same, false},
		// Who knows the preface's key alone still has not the keys of TLS.
		"the preface alone": {same, &Identity{secret: same.secret, client: wrong.client}, false},
		"a false server":    {&Identity{secret: same.secret, server: wrong.server}, same, false},
	} {
		t.Run(name, func(t *testing.T) {
			server, client := meet(t, newGate(c.server), c.client)
			if (client == nil) != c.ok || c.ok && server != nil || name != "a false server" && !c.ok && server == nil {
				t.Errorf("the server says %v, the client %v", server, client)
			}
		})
	}
}

// TestClocks: with a secret, hosts ten minutes, or ten years, apart know each other: no date is looked at. Certificates have dates, and one that is not valid
// yet, or no more, is named for what it is.
func TestClocks(t *testing.T) {
	ca, issue := authority(t, time.Now())
	const year = 365 * 24 * time.Hour
	for _, apart := range []time.Duration{10 * time.Minute, -10 * time.Minute, 10 * year, -10 * year} {
		server, client := secret(t, "a secret of many bytes"), secret(t, "a secret of many bytes")
		server.server.Time = func() time.Time { return time.Now().Add(apart) }
		if s, c := meet(t, newGate(server), client); s != nil || c != nil {
			t.Errorf("a secret, %s apart: %v, %v", apart, s, c)
		}
		server, client = certificates(t, ca, issue), certificates(t, ca, issue)
		client.client.Time = func() time.Time { return time.Now().Add(apart) }
		_, err := meet(t, newGate(server), client)
		if near := max(apart, -apart) < time.Hour; (err == nil) != near || !near && !strings.Contains(err.Error(), "expired or is not yet valid") {
			t.Errorf("certificates, %s apart: %v", apart, err)
		}
	}
}

// TestStranger: one who does not have the secret is told sixteen bytes, and no handshake is begun.
func TestStranger(t *testing.T) {
	for name, says := range map[string][]byte{
		"TLS": append([]byte{22, 3, 1, 2, 0}, make([]byte, 600)...), "HTTP": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\nand more bytes than the preface has"), "nothing": nil,
	} {
		a, b := tcpPair(t)
		done := make(chan error, 1)
		go func() {
			_, err := newGate(secret(t, "a secret of many bytes")).admit(t.Context(), a)
			a.Close()
			done <- err
		}()
		if _, err := b.Write(says); err != nil {
			t.Fatal(err)
		}
		if err := b.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) { // which says that it was hung up on already
			t.Fatal(err)
		}
		heard, _ := io.ReadAll(b)
		if err := <-done; !errors.Is(err, errStranger) || len(heard) > nonceSize {
			t.Errorf("%s: %v, and it heard %d bytes", name, err, len(heard))
		}
	}
}

// TestHandshakesAreRationed: with certificates alone, strangers get 20 handshakes a second and not one more, each in its turn.
func TestHandshakesAreRationed(t *testing.T) {
	t.Parallel()
	ca, issue := authority(t, time.Now())
	own := certificates(t, ca, issue)
	g := newGate(own)
	const tries = 30
	begin := time.Now()
	var all sync.WaitGroup
	for range tries {
		all.Go(func() {
			if server, client := meet(t, g, own); server != nil || client != nil {
				t.Errorf("the server says %v, the client %v", server, client)
			}
		})
	}
	all.Wait()
	if took := time.Since(begin); tries > 1+int(took.Seconds()*handshakes+1) {
		t.Errorf("%d handshakes were made in %s", tries, took)
	}
}

// TestSilence: who says nothing keeps nobody out, and is hung up on.
func TestSilence(t *testing.T) {
	t.Parallel()
	ca, issue := authority(t, time.Now())
	for name, i := range map[string]*Identity{"certificates": certificates(t, ca, issue), "a secret": secret(t, "a secret of many bytes")} {
		g := newGate(i)
		a, _ := tcpPair(t)
		silent := make(chan error, 1)
		go func() {
			_, err := g.admit(context.Background(), a)
			silent <- err
		}()
		if server, client := meet(t, g, i); server != nil || client != nil {
			t.Errorf("%s: the server says %v, the client %v", name, server, client)
		}
		if err := <-silent; !errors.Is(err, errStranger) {
			t.Errorf("%s: of a silent one it says %v", name, err)
		}
	}
}

// TestPlaces: an address has two places for strangers, all addresses together 64.
func TestPlaces(t *testing.T) {
	g := newGate(secret(t, "a secret of many bytes"))
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for i, want := range []bool{true, true, false} {
		if got := g.enter(a); got != want {
			t.Errorf("connection %d of an address: %v", i+1, got)
		}
	}
	if !g.enter(b) {
		t.Error("another address is kept out by it")
	}
	g.leave(a)
	if !g.enter(a) || g.enter(a) {
		t.Error("a place that was left is not one more, and no more than one")
	}
	var in []netip.Addr
	for at := netip.MustParseAddr("198.51.100.1"); g.enter(at); at = at.Next() {
		in = append(in, at)
	}
	if len(in)+3 != strangers {
		t.Errorf("%d strangers at once", len(in)+3)
	}
	for _, at := range append(in, a, a, b) {
		g.leave(at)
	}
	if g.inside != 0 || len(g.sources) != 0 {
		t.Errorf("all have left, and %d are inside: %v", g.inside, g.sources)
	}
}

// TestSecretFile: a secret that is short, or that others may read, is none.
func TestSecretFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for _, c := range []struct {
		text string
		mode os.FileMode
		says string
	}{{"a secret of many bytes\n", 0o600, ""}, {"short\n", 0o600, "at least 16"}, {"a secret of many bytes\n", 0o644, "secret"}} {
		os.Remove(file)
		if err := os.WriteFile(file, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := FromSecret(file); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if i, j := secret(t, "a secret of many bytes"), secret(t, "a secret of many bytes"); !bytes.Equal(i.secret, j.secret) {
		t.Error("the same secret gives another key")
	}
}

// TestUnseen: a client that is hung up on unseen, since strangers from its own address have the places, comes in when there is one.
func TestUnseen(t *testing.T) {
	id := secret(t, "correct horse battery staple")
	g := newGate(id)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	turned, in := 0, make(chan error, 1)
	go func() {
		for turned < 3 { // as Serve does where enter refuses
			c, err := l.Accept()
			if err != nil {
				return
			}
			turned++
			c.Close()
		}
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, err = g.admit(t.Context(), c)
		in <- err
	}()
	// What is admitted here says no more, which is the next thing to fail.
	_, _, err = Dial(t.Context(), netip.MustParseAddrPort(l.Addr().String()), "", id)
	if got := <-in; got != nil || turned != 3 || errors.Is(err, errUnseen) {
		t.Errorf("turned away %d times, then %v; the client says %v", turned, got, err)
	}
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if _, _, err := Dial(ctx, netip.MustParseAddrPort(l.Addr().String()), "", id); err == nil || !strings.Contains(err.Error(), "hangs up at once") && ctx.Err() == nil {
		t.Errorf("nobody ever lets it in: %v", err)
	}
}
