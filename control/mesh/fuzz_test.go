package mesh

import (
	"crypto/ed25519"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/control"
)

// someRecord is a record of a node of that name, with everything in it.
func someRecord(t testing.TB, name string, seed byte) *record {
	key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))
	r := &record{Seq: 7, Name: name, Gossip: netip.MustParseAddrPort("192.0.2.1:4786"), Born: 3, VNI: 1,
		Claims:    []claim{{netip.MustParsePrefix("10.244.7.0/24"), 3, true}, {netip.MustParsePrefix("fd00:10:244:7::/64"), 4, false}},
		Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, MAC: control.VTEPMAC(name).String(),
		Features: []string{"rco"}, Ways: []control.Way{{Name: "vxlan", Port: 4789}}, Forgotten: []forgotten{{id{1, 2}, 5}}}
	if err := r.sign(key); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRecord: what was signed is read as it was, and nothing that anybody has changed is read at all.
func TestRecord(t *testing.T) {
	r := someRecord(t, "a", 1)
	got, err := decodeRecord(r.raw)
	if err != nil {
		t.Fatal(err)
	}
	x, _ := json.Marshal(r)
	y, _ := json.Marshal(got)
	if string(x) != string(y) || got.id != r.id || !got.node().Equal(r.node()) {
		t.Errorf("%s was read as %s", x, y)
	}
	for i := range r.raw {
		changed := slices.Clone(r.raw)
		changed[i] ^= 1
		if _, err := decodeRecord(changed); err == nil {
			t.Fatalf("a record whose byte %d was changed is taken", i)
		}
	}
	if len(encodeRecords([]*record{r})) > mostSpread {
		t.Errorf("a record of %d bytes is too long to be spread", len(r.raw))
	}
}

func FuzzRecord(f *testing.F) {
	r := someRecord(f, "a", 1)
	f.Add(r.raw)
	f.Add(append(slices.Clone(r.raw[:64]), "{}"...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got, err := decodeRecord(raw); err == nil && !ed25519.Verify(got.Key, raw[64:], raw[:64]) {
			t.Error("a record is taken that nobody has signed")
		}
	})
}

// FuzzHeard: no message of a member's ends a daemon, or puts into its book what no node has signed.
func FuzzHeard(f *testing.F) {
	a, b := someRecord(f, "a", 1), someRecord(f, "b", 2)
	book := newBook()
	book.put(a, time.Now())
	book.put(b, time.Now())
	f.Add(encodeRecords([]*record{a, b}))
	f.Add(encodeDigest("0102030405060708.0a", book.digest()))
	differ, list := book.compare(digest{})
	f.Add(encodeHave("0102030405060708.0a", differ, list))
	f.Add(encodeWant("0102030405060708.0a", []id{a.id}))
	f.Add([]byte{kindDigest, 255, 0})
	src := New(Settings{Network: simNetwork, VNI: 1, Forget: time.Hour})
	f.Fuzz(func(t *testing.T, msg []byte) {
		run := newSession(src, &memory{Seed: make([]byte, ed25519.SeedSize)}, nil, nil)
		run.take([]*record{a}, false)
		run.heard(msg)
		run.merge(msg)
		for _, e := range run.book.entries {
			if !ed25519.Verify(e.Key, e.raw[64:], e.raw[:64]) {
				t.Error("the book has a record that nobody has signed")
			}
		}
	})
}

// FuzzMessages: what a message is read as is written the same again.
func FuzzMessages(f *testing.F) {
	f.Add(encodeDigest("a.b", digest{1, 2, 3})[1:])
	f.Add(encodeHave("a.b", 5, []have{{id{1}, 2}})[1:])
	f.Add(encodeWant("a.b", []id{{1}, {2}})[1:])
	f.Fuzz(func(t *testing.T, in []byte) {
		if from, d, err := decodeDigest(in); err == nil && string(encodeDigest(from, d)[1:]) != string(in) {
			t.Errorf("digest %x", in)
		}
		if from, differ, list, err := decodeHave(in); err == nil && string(encodeHave(from, differ, list)[1:]) != string(in) {
			t.Errorf("have %x", in)
		}
		if from, list, err := decodeWant(in); err == nil && string(encodeWant(from, list)[1:]) != string(in) {
			t.Errorf("want %x", in)
		}
	})
}

// FuzzPacket: no packet is opened but those that were sealed.
func FuzzPacket(f *testing.F) {
	s := newSealer([]Secret{{1}, {2}}, func() time.Time { return time.Unix(1e9, 0) })
	good := s.seal([]byte("hello"))
	f.Add(good)
	f.Add(good[:overhead])
	f.Fuzz(func(t *testing.T, packet []byte) {
		if plain, _, err := s.open(packet); err == nil && string(plain) != "hello" {
			t.Errorf("%x is opened", packet)
		}
	})
}

// FuzzMemory: what is written down and damaged is never taken for something else than it is.
func FuzzMemory(f *testing.F) {
	m, err := remember("")
	if err != nil {
		f.Fatal(err)
	}
	m.Claims = []claim{{netip.MustParsePrefix("10.244.7.0/24"), 3, true}}
	good, _ := json.Marshal(m)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m memory
		if json.Unmarshal(data, &m) == nil && m.right() {
			newSession(New(Settings{Network: simNetwork, VNI: 1, Forget: time.Hour}), &m, nil, nil)
		}
	})
}

// TestMutated: of many packets that were changed on the way none is taken.
func TestMutated(t *testing.T) {
	t.Parallel()
	s := newSealer([]Secret{{1}, {2}}, time.Now)
	good := s.seal(encodeRecords([]*record{someRecord(t, "a", 1)}))
	rnd := rand.New(rand.NewPCG(1, 2))
	for range mutations() {
		bad := slices.Clone(good)
		for range 1 + rnd.IntN(4) {
			switch at := rnd.IntN(len(bad)); rnd.IntN(3) {
			case 0:
				bad[at] ^= byte(1 + rnd.IntN(255))
			case 1:
				bad = bad[:at+1]
			default:
				bad = slices.Insert(bad, at, byte(rnd.IntN(256)))
			}
		}
		if slices.Equal(bad, good) {
			continue
		}
		if _, _, err := s.open(bad); err == nil {
			t.Fatalf("a packet is taken that was changed: %x", bad)
		}
	}
}

// TestStream: two ends with one password understand each other; a byte that was changed ends it, and what was recorded is nothing to a new one.
func TestStream(t *testing.T) {
	t.Parallel()
	caller, answerer := newSealer([]Secret{{1}, {2}}, time.Now), newSealer([]Secret{{2}, {1}}, time.Now)
	near, far := net.Pipe()
	done := make(chan error, 1)
	text := slices.Repeat([]byte("weft"), 20000)
	go func() {
		conn, err := answerer.answer(far, time.Minute)
		if err == nil {
			_, err = conn.Write(text)
		}
		done <- err
	}()
	conn, err := caller.call(near, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 0, len(text))
	for len(got) < len(text) {
		part := make([]byte, 1000)
		n, err := conn.Read(part)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, part[:n]...)
	}
	if err := <-done; err != nil || !slices.Equal(got, text) {
		t.Errorf("%v; %d bytes arrived of %d", err, len(got), len(text))
	}
	go func() { _, _ = far.Write(append([]byte{0, 4}, make([]byte, 4+tagLen)...)) }()
	if _, err := conn.Read(make([]byte, 10)); err == nil {
		t.Error("a frame is taken that nobody has sealed")
	}
}
