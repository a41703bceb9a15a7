package etcd

import (
	"fmt"
	"net/netip"

	"weft/control"
)

// schema is how a cluster is written down in etcd: which keys there are and what they hold. Keys are
// whole, prefix included.
type schema interface {
	networkKey() string
	// decodeNetwork reads the value of networkKey; the error says what to correct.
	decodeNetwork(value []byte) (control.Network, error)
	// encodeNetwork writes n; old is the present value, whose unknown parts stay, nil where there is none.
	encodeNetwork(n control.Network, old []byte) ([]byte, error)

	// decode reads any other key below the prefix; false where it says nothing about nodes.
	decode(key string, value []byte) (record, bool)
	// keys are those of a node that holds these prefixes. The first describes the node.
	keys(n control.Node) []string
	// values are what goes into keys.
	values(n control.Node, by owner) ([]string, error)
	// claims is what the keys that claim prefixes begin with.
	claims() string
	// exclusive says that two keys can never claim one prefix.
	exclusive(pools []control.Pool) bool
}

// owner is who wrote a record: one run of one daemon.
type owner struct {
	ID    string `json:"id"`    // random, of a state directory
	Epoch uint64 `json:"epoch"` // grows with every claim of that owner
}

// record is what one key says. Of node and claims it has one, or both.
type record struct {
	node   control.Node   // a node describes itself; Name is "" where the key does not
	claims []netip.Prefix // prefixes that belong to name for as long as the key exists
	name   string         // whose key it is; "" where even that is unknown
	owner  owner
	at     netip.Addr // the node's first endpoint, where the key tells
	wrong  string     // why the key says nothing that can be used, "" when it does
}

func garbage(name, format string, args ...any) record {
	if control.WrongName(name) != "" {
		name = ""
	}
	return record{name: name, wrong: fmt.Sprintf(format, args...)}
}
