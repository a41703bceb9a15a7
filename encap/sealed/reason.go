package sealed

// reason is why a handshake message was rejected; each has one name in reports.
type reason uint8

const (
	malformed    reason = iota // of no known type, length or version
	badMAC                     // MAC 1 is wrong: the sender takes us for somebody else, it has another public key for us
	badHandshake               // what is inside does not open
	unknownKey                 // authentic, but no node of the cluster has this public key
	staleStamp                 // a replayed initiation, or the sender's clock went back
	crossed                    // both have initiated at once, and ours goes on
	rateLimited                // more initiations than one node needs
	badOffer                   // a cipher or lanes this version does not know
	badResponse                // a response that does not open: another psk, or forged
	badCookie                  // a cookie message that does not open
	strayAnswer                // an answer to no question of ours
	badConfirm                 // a confirmation that does not open, or a replayed one
	numReasons
)

var reasonNames = [numReasons]string{
	"malformed", "bad-mac", "bad-handshake", "unknown-key", "stale-stamp", "crossed", "rate-limited", "bad-offer",
	"bad-response", "bad-cookie", "stray-answer", "bad-confirm",
}

func (r reason) String() string { return reasonNames[r] }

// rejections counts by reason.
type rejections [numReasons]uint64

func (r *rejections) addTo(m map[string]uint64) {
	for i, n := range r {
		if n > 0 {
			m[reason(i).String()] += n
		}
	}
}
