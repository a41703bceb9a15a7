package pods

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"weft/api"
	"weft/control"
	"weft/internal/holder"
	"weft/node/probe"
)

// File is the store's name in the state directory.
const File = "pods.db"

// quarantine is how long a freed address rests while others are free: peers, conntrack and DNS still know it.
const quarantine = 5 * time.Minute

// record is an attachment as it is kept. It is written before the kernel is touched, and again with the Result once
// everything stands: one without a Result is an attach under way, or cut off.
type record struct {
	Network      string            `json:"network"`
	ContainerID  string            `json:"container_id"`
	IfName       string            `json:"ifname"`
	Netns        string            `json:"netns"`
	Inode        uint64            `json:"inode"` // of the namespace: its path may come to mean another
	PodNamespace string            `json:"pod_namespace,omitempty"`
	PodName      string            `json:"pod_name,omitempty"`
	MAC          string            `json:"mac"`   // of the pod's interface
	Addrs        []netip.Addr      `json:"addrs"` // IPv4 first
	Delegated    bool              `json:"delegated,omitempty"`
	Bridged      bool              `json:"bridged,omitempty"`
	Since        time.Time         `json:"since"`
	Result       *api.AttachResult `json:"result,omitempty"`

	// Link is the node's end where the attachment's name is not known, and so does not tell: see rebuild.
	Link string `json:"link,omitempty"`
}

// link is the name of the node's end.
func (r *record) link() string {
	if r.Link != "" {
		return r.Link
	}
	return hostName(r.key())
}

func (r *record) key() string { return key(r.Network, r.ContainerID, r.IfName) }

// key names an attachment; none of the three parts may hold a zero byte.
func key(network, container, ifname string) string {
	return network + "\x00" + container + "\x00" + ifname
}

var (
	bucketMeta  = []byte("meta")  // "boot" → boot id
	bucketPods  = []byte("pods")  // key → record as JSON
	bucketAddrs = []byte("addrs") // address → key of the pod that has it
	bucketFreed = []byte("freed") // address → when it was freed, ns since 1970, 8 bytes big-endian
	bucketLast  = []byte("last")  // prefix → the address of it that was given out last
	buckets     = [][]byte{bucketMeta, bucketPods, bucketAddrs, bucketFreed, bucketLast}
)

// store keeps attachments and addresses on disk. Every change is one transaction: after a crash it is there wholly or
// not at all. Safe for concurrent use.
type store struct {
	db  *bolt.DB
	now func() time.Time
}

// openStore opens the file, which is made where it is missing. What was written before the machine booted is
// forgotten: the namespaces are gone, and with them the links.
func openStore(file, bootID string) (*store, error) {
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		remedy := "see `weft doctor`; a file that is damaged may be removed once all pods of the node are"
		if errors.Is(err, bolterrors.ErrTimeout) {
			remedy = "somebody has locked it: stop that"
			if by := holder.File(file); len(by) > 0 {
				remedy = fmt.Sprintf("it is locked by %s: stop that", strings.Join(by, " and "))
			}
		}
		return nil, fmt.Errorf("pods: open %s: %w: %s", file, err, remedy)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		if meta := tx.Bucket(bucketMeta); meta != nil && string(meta.Get([]byte("boot"))) != bootID {
			for _, b := range buckets {
				if err := tx.DeleteBucket(b); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
					return err
				}
			}
		}
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put([]byte("boot"), []byte(bootID))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pods: prepare %s: %w", file, err), db.Close())
	}
	return &store{db: db, now: time.Now}, nil
}

func (s *store) close() error { return s.db.Close() }

// bootID tells one boot of the machine from another.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("pods: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// get returns an attachment, nil where there is none.
func (s *store) get(key string) (r *record, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		data := tx.Bucket(bucketPods).Get([]byte(key))
		if data == nil {
			return nil
		}
		r = &record{}
		return s.unmarshal([]byte(key), data, r)
	})
	return r, wrap(err)
}

// unmarshal reads a record; an error says of which pod and in which file.
func (s *store) unmarshal(key, data []byte, r *record) error {
	if err := json.Unmarshal(data, r); err != nil {
		return fmt.Errorf("%s: the record of %q cannot be read: %w: start the daemon again, it sets the file aside", s.db.Path(), bytes.ReplaceAll(key, []byte{0}, []byte(" ")), err)
	}
	return nil
}

// all returns every attachment, sorted by key.
func (s *store) all() (list []*record, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketPods).ForEach(func(k, data []byte) error {
			r := &record{}
			list = append(list, r)
			return s.unmarshal(k, data, r)
		})
	})
	return list, wrap(err)
}

// reserve writes r down with addresses for it: those asked for, or else one of each family that prefixes have. r.Addrs
// is set. Errors have the codes CodeExhausted, CodeExists and CodeNotInPrefix.
func (s *store) reserve(r *record, asked []netip.Addr, prefixes []netip.Prefix) error {
	return wrap(s.db.Update(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketPods).Get([]byte(r.key())) != nil {
			return coded(api.CodeExists, "the attachment is written down already")
		}
		r.Addrs = nil
		for _, v6 := range []bool{false, true} {
			var of []netip.Prefix
			for _, p := range prefixes {
				if p.Addr().Is6() == v6 {
					of = append(of, p)
				}
			}
			a, err := pick(tx, s.now(), v6, asked, of)
			if err != nil {
				return err
			}
			if !a.IsValid() {
				continue
			}
			if err := tx.Bucket(bucketAddrs).Put(a.AsSlice(), []byte(r.key())); err != nil {
				return err
			}
			if err := tx.Bucket(bucketFreed).Delete(a.AsSlice()); err != nil {
				return err
			}
			r.Addrs = append(r.Addrs, a)
		}
		return put(tx, r)
	}))
}

// pick chooses an address of one family; the zero Addr where prefixes have none of it and none is asked for.
func pick(tx *bolt.Tx, now time.Time, v6 bool, asked []netip.Addr, prefixes []netip.Prefix) (netip.Addr, error) {
	for _, a := range asked {
		if a.Is6() != v6 {
			continue
		}
		for _, p := range prefixes {
			if !usable(p, a) {
				continue
			}
			if tx.Bucket(bucketAddrs).Get(a.AsSlice()) != nil {
				return a, coded(api.CodeExists, "address %s belongs to another pod", a)
			}
			return a, nil
		}
		return a, coded(api.CodeNotInPrefix, "address %s is not one this node may give to a pod: its prefixes are %v", a, prefixes)
	}
	if len(prefixes) == 0 {
		return netip.Addr{}, nil
	}
	var oldest netip.Addr
	var freed int64
	for _, p := range prefixes {
		found, rested, when := next(tx, now, p)
		if rested {
			return found, tx.Bucket(bucketLast).Put([]byte(p.String()), found.AsSlice())
		}
		if found.IsValid() && (!oldest.IsValid() || when < freed) {
			oldest, freed = found, when
		}
	}
	if !oldest.IsValid() { // nothing is free, not even in quarantine
		return oldest, coded(api.CodeExhausted, "no address is left in %v: detach pods, or give the node a larger prefix", prefixes)
	}
	return oldest, nil
}

// next looks for a free address of p, from behind the one given out last, round and round: an address is used again
// as late as can be. When only addresses in quarantine are free it returns the one freed first, and rested is false.
func next(tx *bolt.Tx, now time.Time, p netip.Prefix) (found netip.Addr, rested bool, freed int64) {
	a, ok := netip.AddrFromSlice(tx.Bucket(bucketLast).Get([]byte(p.String())))
	if !ok || !p.Contains(a) {
		a = p.Addr()
	}
	used, resting := tx.Bucket(bucketAddrs), tx.Bucket(bucketFreed)
	for start, wrapped := a, false; ; {
		a = a.Next()
		if !p.Contains(a) { // also at the end of the address space, where a is the zero Addr
			a, wrapped = p.Addr(), true
		}
		if usable(p, a) && used.Get(a.AsSlice()) == nil {
			at := resting.Get(a.AsSlice())
			if at == nil {
				return a, true, 0
			}
			when := int64(binary.BigEndian.Uint64(at))
			if now.Sub(time.Unix(0, when)).Abs() >= quarantine { // Abs: a clock set back must not rest it for ever
				return a, true, 0
			}
			if !found.IsValid() || when < freed {
				found, freed = a, when
			}
		}
		if wrapped && a == start || wrapped && a.Compare(start) > 0 {
			return found, false, freed
		}
	}
}

// usable says whether an address of p may be a pod's: not the prefix's own (the subnet's, the routers' anycast), not
// the node's, which is control.HostAddr, and not IPv4's broadcast.
func usable(p netip.Prefix, a netip.Addr) bool {
	if !p.Contains(a) || a == control.HostAddr(p) || a == p.Addr() || probe.Reserved(p, a) {
		return false
	}
	return a.Is6() || p.Contains(a.Next())
}

// finish writes down what stands.
func (s *store) finish(r *record) error {
	return wrap(s.db.Update(func(tx *bolt.Tx) error { return put(tx, r) }))
}

// restore writes an attachment down with the addresses that it has, but those that are another's: they are taken out of it, and returned.
func (s *store) restore(r *record) (refused []netip.Addr, err error) {
	err = wrap(s.db.Update(func(tx *bolt.Tx) error {
		for _, a := range r.Addrs {
			if r.Delegated {
				break
			}
			if has := tx.Bucket(bucketAddrs).Get(a.AsSlice()); has != nil && string(has) != r.key() {
				refused = append(refused, a)
				continue
			}
			if err := tx.Bucket(bucketAddrs).Put(a.AsSlice(), []byte(r.key())); err != nil {
				return err
			}
		}
		r.lose(refused)
		return put(tx, r)
	}))
	return refused, err
}

// lose takes addresses out of an attachment.
func (r *record) lose(addrs []netip.Addr) {
	if len(addrs) == 0 {
		return
	}
	lost := func(a netip.Addr) bool { return slices.Contains(addrs, a) }
	r.Addrs = slices.DeleteFunc(r.Addrs, lost)
	if r.Result != nil {
		r.Result.IPs = slices.DeleteFunc(r.Result.IPs, func(ip api.PodIP) bool { return lost(ip.Address.Addr()) })
		r.Result.Routes = slices.DeleteFunc(r.Result.Routes, func(route api.PodRoute) bool {
			return !slices.ContainsFunc(r.Addrs, func(a netip.Addr) bool { return a.Is6() == route.Dst.Addr().Is6() })
		})
	}
}

// rename writes an attachment down under its name, that was under another.
func (s *store) rename(old string, r *record) error {
	return wrap(s.db.Update(func(tx *bolt.Tx) error {
		for _, a := range r.Addrs {
			if string(tx.Bucket(bucketAddrs).Get(a.AsSlice())) == old {
				if err := tx.Bucket(bucketAddrs).Put(a.AsSlice(), []byte(r.key())); err != nil {
					return err
				}
			}
		}
		if err := tx.Bucket(bucketPods).Delete([]byte(old)); err != nil {
			return err
		}
		return put(tx, r)
	}))
}

func put(tx *bolt.Tx, r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketPods).Put([]byte(r.key()), data)
}

// free forgets an attachment and puts its addresses into quarantine.
func (s *store) free(r *record) error {
	return wrap(s.db.Update(func(tx *bolt.Tx) error {
		for _, a := range r.Addrs {
			if string(tx.Bucket(bucketAddrs).Get(a.AsSlice())) != r.key() {
				continue // delegated: not ours to give
			}
			if err := tx.Bucket(bucketAddrs).Delete(a.AsSlice()); err != nil {
				return err
			}
			now := binary.BigEndian.AppendUint64(nil, uint64(s.now().UnixNano()))
			if err := tx.Bucket(bucketFreed).Put(a.AsSlice(), now); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketPods).Delete([]byte(r.key()))
	}))
}

// exhausted says whether a pod of the families of prefixes could not have an address.
func (s *store) exhausted(prefixes []netip.Prefix) error {
	tx, err := s.db.Begin(false)
	if err != nil {
		return wrap(err)
	}
	defer tx.Rollback()
	for _, v6 := range []bool{false, true} {
		var of []netip.Prefix
		free := false
		for _, p := range prefixes {
			if p.Addr().Is6() == v6 {
				of = append(of, p)
				a, _, _ := next(tx, s.now(), p)
				free = free || a.IsValid()
			}
		}
		if len(of) > 0 && !free {
			return coded(api.CodeExhausted, "no address is left in %v: detach pods, or give the node a larger prefix", of)
		}
	}
	return nil
}

func coded(code, format string, args ...any) error {
	return &api.Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// wrap says where an error came from, unless it is one for the client.
func wrap(err error) error {
	var e *api.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return fmt.Errorf("pods: store: %w", err)
}
