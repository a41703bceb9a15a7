package mesh

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"weft/control"
)

// record is what one node says about itself. Only the node can write it: it is signed with the key that its identity is made of. Of two
// records of one identity the one with the higher Seq is the newer. Immutable once signed or decoded.
type record struct {
	Key    ed25519.PublicKey `json:"key"` // of the node that wrote it
	Seq    uint64            `json:"seq"`
	Name   string            `json:"name"`
	Gossip netip.AddrPort    `json:"gossip"` // where it hears the mesh
	Born   uint64            `json:"born"`   // stamp of its first claim, unborn before that: who was there first

	VNI       uint32         `json:"vni"`
	Claims    []claim        `json:"claims,omitempty"`
	Endpoints []netip.Addr   `json:"endpoints"`
	MAC       string         `json:"mac"`
	PublicKey string         `json:"public_key,omitempty"` // base64 X25519, for sealed traffic
	Features  []string       `json:"features,omitempty"`
	Ways      []control.Way  `json:"ways,omitempty"`
	Forgotten []forgotten    `json:"forgotten,omitempty"` // the newest last
	id        id             // of Key
	mac       control.MAC    // MAC, read
	prefixes  []netip.Prefix // of the claims in force
	raw       []byte         // signature ‖ JSON, as it goes over the wire
}

// claim is a prefix that a node says is its own. Stamps are of a Lamport clock: a claim's is higher than that of every record that its
// node had seen, so that no clock of a machine has a say in who was first.
type claim struct {
	Prefix netip.Prefix `json:"prefix"`
	Stamp  uint64       `json:"stamp"`
	Held   bool         `json:"held"` // it is in force; before that it is held out for an elder claim to be heard of
}

// forgotten is a record that is no more to count, and all before it: its node's claims have run out, or somebody said so.
type forgotten struct {
	ID  id     `json:"id"`
	Seq uint64 `json:"seq"`
}

// signature is the first bytes of a record.
type signature [ed25519.SignatureSize]byte

func (r *record) signature() signature { return signature(r.raw) }

// id names an identity: the first bytes of its key's SHA-256.
type id [8]byte

func idOf(key ed25519.PublicKey) id {
	sum := sha256.Sum256(key)
	return id(sum[:8])
}

func (i id) String() string               { return hex.EncodeToString(i[:]) }
func (i id) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (i *id) UnmarshalText(text []byte) error {
	if len(text) != 2*len(i) {
		return errors.New("not an identity")
	}
	_, err := hex.Decode(i[:], text)
	return err
}

// Bounds of a record.
const (
	mostRecord    = 8 << 10 // bytes
	mostList      = 32      // entries of each of its lists
	mostForgotten = 32
	mostStamp     = 1 << 62 // so that no record can use the stamps up
	unborn        = mostStamp
)

// sign makes the record's bytes.
func (r *record) sign(key ed25519.PrivateKey) error {
	r.Key = key.Public().(ed25519.PublicKey)
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("mesh: write the record: %w", err)
	}
	r.raw = append(ed25519.Sign(key, text), text...)
	if len(r.raw) > mostRecord {
		return fmt.Errorf("mesh: this node's record has %d bytes, %d are the most: give it fewer endpoints", len(r.raw), mostRecord)
	}
	return r.read()
}

// decodeRecord reads a record that came from elsewhere, and keeps raw. It takes nothing that its node has not signed.
func decodeRecord(raw []byte) (*record, error) {
	if len(raw) <= ed25519.SignatureSize || len(raw) > mostRecord {
		return nil, fmt.Errorf("a record of %d bytes", len(raw))
	}
	signature, text := raw[:ed25519.SignatureSize], raw[ed25519.SignatureSize:]
	r := &record{raw: raw}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, err
	}
	if len(r.Key) != ed25519.PublicKeySize || !ed25519.Verify(r.Key, text, signature) {
		return nil, errors.New("a record that its node has not signed")
	}
	return r, r.read()
}

// read checks the fields and fills those that follow from others.
func (r *record) read() (err error) {
	r.id = idOf(r.Key)
	if wrong := control.WrongName(r.Name); wrong != "" {
		return errors.New(wrong)
	}
	if r.mac, err = control.ParseMAC(r.MAC); err != nil {
		return err
	}
	if wrong := control.WrongKey(r.PublicKey); wrong != "" {
		return fmt.Errorf("a public key that is %s", wrong)
	}
	if r.Seq == 0 || r.Seq > mostStamp || r.Born > mostStamp || !r.Gossip.IsValid() {
		return errors.New("a number out of range")
	}
	if len(r.Claims) > mostList || len(r.Endpoints) > mostList || len(r.Features) > mostList || len(r.Ways) > mostList || len(r.Forgotten) > mostForgotten {
		return errors.New("too long a list")
	}
	r.prefixes = nil
	for _, c := range r.Claims {
		if c.Stamp > mostStamp || !c.Prefix.IsValid() || c.Prefix != c.Prefix.Masked() {
			return errors.New("a claim that is none")
		}
		if c.Held {
			r.prefixes = append(r.prefixes, c.Prefix)
		}
	}
	return nil
}

// node is what the record makes of its node.
func (r *record) node() control.Node {
	return control.Node{Name: r.Name, Endpoints: r.Endpoints, Prefixes: r.prefixes, PublicKey: r.PublicKey, MAC: r.mac, Features: r.Features, Ways: r.Ways}
}

// stamp is the highest of the record.
func (r *record) stamp() uint64 {
	most := uint64(0)
	if r.Born != unborn {
		most = r.Born
	}
	for _, c := range r.Claims {
		most = max(most, c.Stamp)
	}
	return most
}
