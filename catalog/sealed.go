package catalog

import (
	"errors"
	"fmt"
	"slices"

	"weft/backend"
	"weft/backend/userspace"
	"weft/control"
	"weft/encap/sealed"
	"weft/internal/steer"
)

// steering is what an outside port needs to know of sealed packets; nil where there are none.
func steering(p userspace.Path) *steer.Rule {
	if !p.Sealed {
		return nil
	}
	return &steer.Rule{Type: sealed.TypeData, Lane: sealed.LaneOffset}
}

// sealer joins package sealed, which knows keys, to nodes, which have names.
type sealer struct {
	*sealed.Manager
	set      backend.Seal
	password *sealed.Password    // nil = none
	derived  map[string][32]byte // public keys that follow from it, by node
	own      string              // the public key of the key file; "" = there is none
}

func newSealer(s backend.Settings) (userspace.Sealer, error) {
	cipher, err := sealed.CipherByName(s.Seal.Cipher)
	if err != nil {
		return nil, err
	}
	k := &sealer{set: *s.Seal, derived: map[string][32]byte{}}
	if k.password, k.own, err = readKeys(k.set.KeyFile, k.set.PSKFile); err != nil {
		return nil, err
	}
	k.Manager, err = sealed.New(sealed.Config{Cipher: cipher, Lanes: s.Queues, RekeyAfter: s.Seal.RekeyAfter, Log: s.Log})
	return k, err
}

// readKeys reads the password, nil where there is to be none, and this node's public key, "" where it follows from the
// password. A key file that is there and of no use is an error, also where there is a password: who has made it relies on it.
func readKeys(keyFile, pskFile string) (password *sealed.Password, own string, err error) {
	if pskFile != "" {
		if password, err = sealed.LoadPassword(pskFile); err != nil {
			return nil, "", fmt.Errorf("encryption.psk_file: %w", err)
		}
	}
	switch own, err = ShowKey(keyFile); {
	case err == nil:
		return password, own, nil
	case password == nil:
		return nil, "", fmt.Errorf("encryption.key_file: %w, or set encryption.psk_file on all nodes", err)
	case errors.Is(err, sealed.ErrNoKey):
		return password, "", nil
	}
	return nil, "", fmt.Errorf("encryption.key_file: %w; or remove the file, where the password is to be all", err)
}

// CheckKeys says what keeps a daemon that seals from reading its keys.
func CheckKeys(keyFile, pskFile string) error {
	_, _, err := readKeys(keyFile, pskFile)
	return err
}

// PublicKey implements userspace.Sealer: that of the key file, where there is one.
func (k *sealer) PublicKey() string { return k.own }

func (k *sealer) Overhead() int { return sealed.HeaderLen + sealed.TagLen }

func (k *sealer) Update(self control.Node, peers []userspace.SealedPeer) error {
	id, err := k.identity(self)
	if err != nil {
		return err
	}
	list := make([]sealed.Peer, len(peers))
	for i, p := range peers {
		list[i] = sealed.Peer{ID: p.Hop.Peer.ID, Name: p.Node.Name, Public: k.public(p.Node), Hop: p.Hop, Plain: p.Plain,
			PlainFrom: slices.Clone(p.Node.Endpoints)}
	}
	return k.Manager.Update(id, list)
}

// identity is this node's: a published key decides, and without one the password.
func (k *sealer) identity(self control.Node) (id sealed.Identity, err error) {
	if k.password != nil {
		id.PSK = k.password.PSK()
	}
	switch {
	case self.PublicKey != "":
		if id.Private, err = sealed.LoadKey(k.set.KeyFile); err != nil {
			return id, fmt.Errorf("encryption.key_file: %w, or publish no public_key of node %s", err, self.Name)
		}
		public, err := sealed.PublicKey(id.Private)
		if err != nil {
			return id, err
		}
		if have := sealed.EncodeKey(public); have != self.PublicKey {
			return id, fmt.Errorf("the public key published for node %s is %s, that of %s is %s: publish this one", self.Name, self.PublicKey, k.set.KeyFile, have)
		}
	case k.password != nil:
		id.Private = k.password.NodeKey(self.Name)
	default:
		return id, fmt.Errorf("no public key is published for node %s: publish what `weft keys show` prints, or set encryption.psk_file on all nodes", self.Name)
	}
	return id, nil
}

// public is a node's public key, zero where there is none that can be known.
func (k *sealer) public(n *control.Node) [32]byte {
	if n.PublicKey != "" || k.password == nil {
		key, err := sealed.DecodeKey(n.PublicKey)
		if err != nil {
			return [32]byte{}
		}
		return key
	}
	key, known := k.derived[n.Name]
	if !known {
		key, _ = sealed.PublicKey(k.password.NodeKey(n.Name)) // 32 bytes are always a key
		k.derived[n.Name] = key
	}
	return key
}

func (k *sealer) Sessions() map[uint32]backend.Session {
	all := map[uint32]backend.Session{}
	for id, s := range k.Status() {
		b := backend.Session{Established: s.Established, Reason: s.Reason, Epoch: s.Epoch, Since: s.Since, Initiator: s.Initiator,
			Handshakes: s.Handshakes, Attempts: s.Attempts, Endpoint: s.Endpoint, Plain: s.Plain, Sealed: s.Sealed, Rejected: s.Rejected,
			CookiesSent: s.CookiesSent, CookiesReceived: s.CookiesReceived}
		if s.Established {
			b.Cipher, b.PeerCipher = s.TxCipher.String(), s.RxCipher.String()
		}
		all[id] = b
	}
	return all
}
