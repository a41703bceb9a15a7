package sealed

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/argon2"

	"weft/internal/secretfile"
	"weft/internal/wholefile"
)

// ErrNoKey says that a key file does not exist.
var ErrNoKey = errors.New("there is no private key")

// PublicKey returns the X25519 public key of a private one.
func PublicKey(private [32]byte) (public [32]byte, err error) {
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return public, fmt.Errorf("sealed: %w", err)
	}
	return [32]byte(k.PublicKey().Bytes()), nil
}

// EncodeKey writes a key as people and files have it: base64 (RFC 4648 §4), 44 characters.
func EncodeKey(k [32]byte) string { return base64.StdEncoding.EncodeToString(k[:]) }

// DecodeKey reads what EncodeKey wrote.
func DecodeKey(text string) (k [32]byte, err error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != len(k) {
		return k, errors.New("sealed: not a key: want 32 bytes in base64, as `weft keys show` prints them")
	}
	return [32]byte(b), nil
}

// LoadKey reads a private key file. One that others may read is refused.
func LoadKey(file string) (private [32]byte, err error) {
	b, err := readSecret(file)
	if errors.Is(err, fs.ErrNotExist) {
		return private, fmt.Errorf("sealed: %w in %s: make one with `weft keys gen`", ErrNoKey, file)
	} else if err != nil {
		return private, err
	}
	if private, err = DecodeKey(string(bytes.TrimSpace(b))); err != nil {
		return private, fmt.Errorf("sealed: %s holds no private key: make one with `weft keys gen`", file)
	}
	return private, nil
}

// GenerateKey makes a private key and writes it to a file of mode 0600 that must not exist yet (fs.ErrExist).
func GenerateKey(file string) (private [32]byte, err error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return private, fmt.Errorf("sealed: make a key: %w", err)
	}
	private = [32]byte(k.Bytes())
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return private, fmt.Errorf("sealed: %w", err)
	}
	err = wholefile.Create(file, 0o600, []byte(EncodeKey(private)+"\n"))
	if errors.Is(err, fs.ErrExist) {
		return private, fmt.Errorf("sealed: %s: %w: a new key would make this node a stranger to the others: remove the file first if that is wanted", file, fs.ErrExist)
	} else if err != nil {
		return private, fmt.Errorf("sealed: %w", err)
	}
	return private, nil
}

// readSecret reads a file that nobody but root and its owner, this process's user, may read.
func readSecret(file string) ([]byte, error) {
	data, err := secretfile.Read(file, 4096)
	if err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	return data, nil
}

// Cost of deriving from the password: argon2id with three passes over 64 MiB (RFC 9106 §4, second
// recommended option), once at start.
const (
	passwordPasses  = 3
	passwordMemory  = 64 << 10 // KiB
	passwordThreads = 4
	leastPassword   = 8 // bytes
)

// Password is what follows from the cluster's password. Who knows it can be any node.
type Password struct{ psk, nodes, mesh [32]byte }

// LoadPassword reads a password file; white space around the password does not count.
func LoadPassword(file string) (*Password, error) {
	b, err := readSecret(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: write the cluster's password there, mode 0600", err)
	} else if err != nil {
		return nil, err
	}
	b = bytes.TrimSpace(b)
	if len(b) < leastPassword {
		return nil, fmt.Errorf("sealed: the password in %s has %d bytes, %d are needed: `openssl rand -base64 32` makes a good one", file, len(b), leastPassword)
	}
	return NewPassword(b), nil
}

// NewPassword stretches a password. It takes a few hundred milliseconds, on purpose.
func NewPassword(password []byte) *Password {
	master := [32]byte(argon2.IDKey(password, []byte("weft cluster password 1"), passwordPasses, passwordMemory, passwordThreads, 32))
	return &Password{psk: derive(master[:], "weft psk"), nodes: derive(master[:], "weft node keys"), mesh: derive(master[:], "weft mesh")}
}

// PSK is the key that all nodes share.
func (p *Password) PSK() [32]byte { return p.psk }

// Mesh is the secret that the nodes of a mesh know each other by.
func (p *Password) Mesh() [32]byte { return p.mesh }

// NodeKey is the private key of the node of that name, where none is published for it.
func (p *Password) NodeKey(name string) [32]byte { return derive(p.nodes[:], "weft node key "+name) }
