package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft/control"
	"weft/control/controltest"
	"weft/control/etcd"
	"weft/internal/nettest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server is a real etcd with TLS on a loopback port. Nothing of it outlives the test.
type server struct {
	t        testing.TB
	dir      string
	url      string
	peer     string
	args     []string
	process  *exec.Cmd
	settings etcd.Settings // for a node of controltest's network
	client   *clientv3.Client
}

// startServer starts etcd, with more arguments if there are any, and waits until it serves.
func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	nettest.RequireTool(t, "etcd")
	s := &server{t: t, dir: t.TempDir(), url: "https://" + nettest.FreeAddr(t).String(), peer: "http://" + nettest.FreeAddr(t).String(), args: args}
	certificates(t, s.dir, s.url)
	s.settings = etcd.Settings{
		Endpoints: []string{s.url}, Lease: time.Minute, CAFile: s.file("ca.pem"), CertFile: s.file("cert.pem"), KeyFile: s.file("key.pem"),
		Network: controltest.Network(), VNI: 1, Log: zap.NewNop(),
	}
	s.start()
	t.Cleanup(s.kill)
	client, hangUp, err := etcd.Dial(s.settings)
	must(t, err)
	t.Cleanup(hangUp)
	s.client = client
	s.await()
	return s
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *server) start() {
	s.t.Helper()
	args := append([]string{
		"--name=test", "--data-dir=" + s.file("data"), "--listen-client-urls=" + s.url, "--advertise-client-urls=" + s.url,
		"--listen-peer-urls=" + s.peer, "--initial-advertise-peer-urls=" + s.peer, "--initial-cluster=test=" + s.peer,
		"--cert-file=" + s.file("cert.pem"), "--key-file=" + s.file("key.pem"), "--trusted-ca-file=" + s.file("ca.pem"), "--client-cert-auth",
		"--logger=zap", "--log-outputs=" + s.file("log"), "--log-level=warn",
	}, s.args...)
	s.process = exec.Command("etcd", args...)
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(s.t, s.process.Start())
}

// kill ends the server without a word, as a power cut does.
func (s *server) kill() {
	if s.process != nil {
		s.process.Process.Kill()
		s.process.Wait()
		s.process = nil
	}
}

// wipe removes all that the server has stored. It must not run.
func (s *server) wipe() { must(s.t, os.RemoveAll(s.file("data"))) }

// await waits until the server serves.
func (s *server) await() {
	s.t.Helper()
	nettest.Eventually(s.t, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := s.client.Get(ctx, "x")
		if err != nil {
			log, _ := os.ReadFile(s.file("log"))
			return fmt.Errorf("%w\n%s", err, log[max(0, len(log)-2000):])
		}
		return nil
	})
}

func (s *server) put(key, value string) {
	s.t.Helper()
	_, err := s.client.Put(context.Background(), key, value)
	must(s.t, err)
}

func (s *server) delete(key string, opts ...clientv3.OpOption) {
	s.t.Helper()
	_, err := s.client.Delete(context.Background(), key, opts...)
	must(s.t, err)
}

// keys returns what is stored below a prefix.
func (s *server) keys(prefix string) map[string]string {
	s.t.Helper()
	resp, err := s.client.Get(context.Background(), prefix, clientv3.WithPrefix())
	must(s.t, err)
	keys := map[string]string{}
	for _, kv := range resp.Kvs {
		keys[string(kv.Key)] = string(kv.Value)
	}
	return keys
}

// certificates writes ca.pem, cert.pem and key.pem: one certificate for the server at a URL and its clients.
func certificates(t testing.TB, dir, at string) {
	server, err := url.Parse(at)
	must(t, err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "root"}, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.ParseIP(server.Hostname())}}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	for name, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: caDER}, "cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	_, err = tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	must(t, err)
}

// daemon is one simulated node: a source that runs, and the State it published last.
type daemon struct {
	t      testing.TB
	src    *etcd.Source
	states chan control.State
	last   control.State
	end    func() error // ends Run and returns what it returned
}

// run runs a source for a node until the test ends, or until end.
func run(t testing.TB, src *etcd.Source, self control.Node) *daemon {
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{t: t, src: src, states: make(chan control.State, 4096)}
	done := make(chan error, 1)
	src.Announce(self)
	go func() { done <- src.Run(ctx, func(s control.State) { d.states <- s }) }()
	var err error
	ended := false
	d.end = func() error {
		cancel()
		if !ended {
			ended, err = true, <-done
		}
		return err
	}
	t.Cleanup(func() { d.end() })
	return d
}

// await returns the first State from now on, the last one included, that ok says is the one.
func (d *daemon) await(what string, ok func(control.State) bool) control.State {
	d.t.Helper()
	if ok(d.last) {
		return d.last
	}
	deadline := time.After(60 * time.Second)
	for {
		select {
		case d.last = <-d.states:
			if ok(d.last) {
				return d.last
			}
		case <-deadline:
			d.t.Fatalf("not within a minute: %s; the last State is %+v", what, d.last)
		}
	}
}
