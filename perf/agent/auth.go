package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"weft/internal/secretfile"
)

const (
	// least is the shortest secret, bytes: it is used as it is, without the work that makes guessing passwords slow.
	least = 16
	// nonceSize is how long each end's share of the preface is, bytes.
	nonceSize = 16
	// first is how long a stranger may take to say the first thing: the preface, or the beginning of a handshake.
	first = time.Second
	// patience is how long a handshake may take, once it has begun.
	patience = 5 * time.Second
	// handshakes a second are made at most with those who have proven nothing, where there are certificates alone.
	handshakes = 20
	// strangers is how many connections may be unproven at once, and strangersEach how many of them from one address; further
	// ones are closed unseen.
	strangers     = 64
	strangersEach = 2
)

// Identity is how the two ends of a control connection know each other: by a secret that both have, or by certificates.
//
// With a secret, the server's first bytes are a nonce, and the client's its own nonce and a MAC of both; who cannot make it is hung up on
// before TLS. The keys of the certificates are derived from the secret, one for each end, and are all that is compared: no name, no
// date, so clocks do not matter. With certificates alone whoever comes gets a handshake, in turn and 20 a second at most.
type Identity struct {
	secret         []byte // nil = certificates
	server, client *tls.Config
}

// FromSecret reads the secret from a file that nobody else may read.
func FromSecret(file string) (*Identity, error) {
	data, err := secretfile.Read(file, 4096)
	if err != nil {
		return nil, fmt.Errorf("the secret: %w", err)
	}
	secret := []byte(strings.TrimSpace(string(data)))
	if len(secret) < least {
		return nil, fmt.Errorf("the secret in %s has %d bytes: give at least %d, from `head -c 32 /dev/urandom | base64` say", file, len(secret), least)
	}
	return identity(secret)
}

func identity(secret []byte) (*Identity, error) {
	mac, err := derive(secret, "preface")
	if err != nil {
		return nil, err
	}
	server, err := certificate(secret, "server")
	if err != nil {
		return nil, err
	}
	client, err := certificate(secret, "client")
	if err != nil {
		return nil, err
	}
	is := func(want tls.Certificate) func(tls.ConnectionState) error {
		return func(s tls.ConnectionState) error {
			key, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
			if !ok || !key.Equal(want.PrivateKey.(ed25519.PrivateKey).Public()) {
				return errors.New("the other end does not have the secret")
			}
			return nil
		}
	}
	return &Identity{secret: mac,
		server: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAnyClientCert,
			VerifyConnection: is(client), SessionTicketsDisabled: true},
		// Chains and names prove nothing here, VerifyConnection compares the key itself.
		client: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{client}, InsecureSkipVerify: true, VerifyConnection: is(server)},
	}, nil
}

func derive(secret []byte, what string) ([]byte, error) {
	return hkdf.Key(sha256.New, secret, nil, "weft.agent "+what, ed25519.SeedSize) // of every version: these tell each other which they are
}

// certificate is the one of an end. What it says is of no account but for its key.
func certificate(secret []byte, end string) (c tls.Certificate, err error) {
	seed, err := derive(secret, end)
	if err != nil {
		return c, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// FromCertificates reads this end's certificate and key, and the authority that both ends' certificates are of.
func FromCertificates(cert, key, ca string) (*Identity, error) {
	if _, err := secretfile.Read(key, 1<<20); err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("the authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the authority: %s holds no certificate in PEM", ca)
	}
	return &Identity{
		server: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			SessionTicketsDisabled: true},
		client: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, RootCAs: pool},
	}, nil
}

// gate keeps strangers cheap.
type gate struct {
	*Identity
	allowed *rate.Limiter
	config  *tls.Config // the server's, which waits its turn before anything is computed

	mu      sync.Mutex
	inside  int                // unproven connections
	sources map[netip.Addr]int // of them from an address
}

func newGate(i *Identity) *gate {
	g := &gate{Identity: i, allowed: rate.NewLimiter(handshakes, 1), config: i.server.Clone(), sources: map[netip.Addr]int{}}
	g.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := hello.Conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return nil, err
		}
		if g.secret != nil {
			return nil, nil // it has proven itself
		}
		ctx, cancel := context.WithTimeout(hello.Context(), patience)
		defer cancel()
		return nil, g.allowed.Wait(ctx)
	}
	return g
}

// enter has a stranger from an address wait for being admitted; leave has to be called once it has been, or not. An address has few
// places of many, so that whoever says nothing, or the wrong thing again and again, is in nobody's way but its own.
func (g *gate) enter(from netip.Addr) (ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside == strangers || g.sources[from] == strangersEach {
		return false
	}
	g.inside++
	g.sources[from]++
	return true
}

func (g *gate) leave(from netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.sources[from]--; g.sources[from] == 0 {
		delete(g.sources, from)
	}
}

var errStranger = errors.New("a stranger")

// errUnseen is a connection that was closed before a word: so does an agent while too many strangers are at its gate.
var errUnseen = errors.New("it hangs up at once: either no agent that takes a secret listens there, or so many strangers come that it sees nobody else")

// admit is the server's side.
func (g *gate) admit(ctx context.Context, c net.Conn) (*tls.Conn, error) {
	if err := c.SetDeadline(time.Now().Add(first)); err != nil {
		return nil, err
	}
	if g.secret != nil {
		if err := g.preface(c); err != nil {
			return nil, err
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return nil, err
		}
	}
	t := tls.Server(c, g.config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errStranger, err)
	}
	return t, c.SetDeadline(time.Time{})
}

func (g *gate) preface(c net.Conn) error {
	var mine [nonceSize]byte
	rand.Read(mine[:])
	if _, err := c.Write(mine[:]); err != nil {
		return err
	}
	var answer [nonceSize + sha256.Size]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return errStranger
	}
	if !hmac.Equal(answer[nonceSize:], g.mac(mine[:], answer[:nonceSize])) {
		return errStranger
	}
	return nil
}

func (i *Identity) mac(server, client []byte) []byte {
	h := hmac.New(sha256.New, i.secret)
	h.Write(server)
	h.Write(client)
	return h.Sum(nil)
}

// greet is the client's side. host is the name that a certificate has to have.
func (i *Identity) greet(ctx context.Context, c net.Conn, host string) (*tls.Conn, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if i.secret != nil {
		var theirs, mine [nonceSize]byte
		if n, err := io.ReadFull(c, theirs[:]); err != nil {
			if n == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
				return nil, errUnseen
			}
			return nil, fmt.Errorf("whoever listens there is no agent that takes a secret: %w", err)
		}
		rand.Read(mine[:])
		if _, err := c.Write(append(mine[:], i.mac(theirs[:], mine[:])...)); err != nil {
			return nil, err
		}
	}
	cfg := i.client.Clone()
	cfg.ServerName = host
	t := tls.Client(c, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("the agent and this command do not know each other: %w: give both the same secret, or certificates of one authority", err)
	}
	return t, c.SetDeadline(time.Time{})
}
