// Package sealed encrypts what goes between nodes: the stage that seals and opens packets in the
// lanes, and the manager that agrees on keys with the peers outside of them.
//
// # Keys
//
// Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s between the nodes' static keys gives each pair a session, an
// epoch, with a key for each direction. It is replaced after two minutes, or sooner where that is asked for, or 2^28 packets. The epoch
// before is accepted for ten seconds more and never sent. Nothing is ever stored: a process that
// starts makes new keys.
//
// # What lanes see
//
// A published table: peers by number, sessions by index. Lanes read it without a lock. A lane
// numbers its packets itself; the lane is part of the nonce.
//
// # Failing closed
//
// What cannot be sealed is dropped (no-session), and so is what does not prove itself (auth-failed,
// replayed, no-session, plain-refused). The only plaintext is that to and from peers that are
// permitted it, while there is no session with them.
package sealed
