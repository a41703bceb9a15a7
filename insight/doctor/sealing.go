package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"weft/api"
)

// sealing says which peers there are no keys with, and why as far as it can be told from this side.
func sealing(s api.Status, peers []api.Peer, err error) []Finding {
	const name = "sealing"
	if err != nil {
		return []Finding{{name, Wrong, err.Error(), "use a daemon and a command of one version"}}
	}
	var list []Finding
	sealed := 0
	for _, p := range peers {
		switch k := p.Session; {
		case k == nil:
		case k.Established:
			sealed++
			if rejected := mismatches(k); rejected != "" {
				list = append(list, Finding{name, Wrong, fmt.Sprintf("the keys with %s cannot be renewed: rejected %s", p.Node, rejected), remedyOf(s, p)})
			}
		case k.Plain:
			list = append(list, Finding{name, Note, fmt.Sprintf("%s is spoken to in clear, by permission: %s", p.Node, k.Reason),
				"seal it, then remove it from encryption.permit_plaintext_from"})
		default:
			list = append(list, Finding{name, Wrong, fmt.Sprintf("no keys with %s: %s", p.Node, k.Reason), remedyOf(s, p)})
		}
	}
	for _, why := range slices.Sorted(maps.Keys(s.Rejected)) {
		found := fmt.Sprintf("%d handshake messages from addresses of no node were rejected: %s", s.Rejected[why], why)
		remedy := ""
		if why == "unknown-key" {
			remedy = "a node whose public key is not in the list of nodes wants to join, or one has made new keys: publish its key"
		}
		list = append(list, Finding{name, Note, found, remedy})
	}
	if len(list) == 0 {
		list = append([]Finding{{name, OK, fmt.Sprintf("%s with %d of %d peers", s.Cipher, sealed, len(peers)), ""}}, list...)
	}
	return list
}

// mismatches are the rejections that do not mend themselves, while the last keys still serve.
func mismatches(k *api.Session) string {
	var found []string
	for _, why := range []string{"bad-mac", "bad-response", "unknown-key", "bad-offer"} {
		if n := k.Rejected[why]; n > 0 {
			found = append(found, fmt.Sprintf("%s %d", why, n))
		}
	}
	return strings.Join(found, ", ")
}

// remedyOf says what to do about a peer without keys: by what was rejected, or by the silence.
func remedyOf(s api.Status, p api.Peer) string {
	rejected := p.Session.Rejected
	switch {
	case rejected["bad-response"] > 0:
		return "give both nodes the same psk_file"
	case rejected["bad-mac"] > 0:
		return "publish the public key that `weft keys show` prints on each node, or give all the same psk_file"
	case rejected["unknown-key"] > 0:
		return fmt.Sprintf("it proves itself by a key that the list of nodes does not have: publish what `weft keys show` prints on %s", p.Node)
	case rejected["stale-stamp"] > 0:
		return fmt.Sprintf("set the clock of %s", p.Node)
	case strings.Contains(p.Session.Reason, "no public key"):
		return fmt.Sprintf("run `weft keys gen` on %s and publish its public key, or set psk_file on all nodes", p.Node)
	}
	return fmt.Sprintf("see whether UDP port %d passes between the nodes, and run `weft doctor` on %s too: the side that rejects knows why", s.Port, p.Node)
}
