package link

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestTrack is the life of a way: first answers, losses one by one, three in a row, and its return.
func TestTrack(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	k := &track{Target: Target{Device: "weft-vx4"}}
	want := func(ms int, changed, saysChanged, known, up bool, since int) {
		t.Helper()
		if changed != saysChanged || k.Known != known || k.Up != up || known && !k.Since.Equal(at(since)) {
			t.Fatalf("at %d ms: changed %v, %+v", ms, changed, k.State)
		}
	}
	k.probe(1, at(0))
	want(199, k.expired(at(199)), false, false, false, 0)
	want(200, k.expired(at(200)), false, false, false, 0) // one loss says nothing
	want(201, k.answered(1, at(201)), true, true, true, 201)
	want(202, k.answered(1, at(202)), false, true, true, 201) // twice is no news
	want(203, k.answered(99, at(203)), false, true, true, 201)
	k.probe(2, at(300))
	want(350, k.answered(2, at(350)), false, true, true, 201)
	for i := range 3 {
		k.probe(uint64(10+i), at(400+200*i))
		want(i, k.expired(at(600+200*i)), i == 2, true, i < 2, map[bool]int{true: 201, false: 1000}[i < 2])
	}
	if !strings.Contains(k.Reason, "has not answered 3 probes in a row by weft-vx4") {
		t.Error(k.Reason)
	}
	k.probe(20, at(1100))
	want(1300, k.expired(at(1300)), false, true, false, 1000)
	k.probe(21, at(1400))
	want(1410, k.answered(21, at(1410)), true, true, true, 1410)
	// A loss while it is watched: it is clean from the next answer on.
	k.probe(22, at(1600))
	want(1800, k.expired(at(1800)), false, true, true, 1410)
	k.probe(23, at(1900))
	want(1901, k.answered(23, at(1901)), false, true, true, 1901)
	want(2000, k.failed(errors.New("network is unreachable"), at(2000)), true, true, false, 2000)
	want(2001, k.failed(errors.New("network is unreachable"), at(2001)), false, true, false, 2000)

	// An answer that takes long is an answer.
	far := &track{}
	for i := range 20 {
		now := at(i * 300)
		far.probe(uint64(i+1), now)
		far.expired(now.Add(250 * time.Millisecond))
		far.answered(uint64(i+1), now.Add(290*time.Millisecond))
	}
	if !far.Up || far.lost != 0 || far.RTT != 290*time.Millisecond || far.patience() != 580*time.Millisecond {
		t.Errorf("%+v, patience %v", far.State, far.patience())
	}
}

// TestFarAndSilent: where answers take longer than the pause between probes, a newer probe is always under way, and silence is noticed all the same: after
// three probes that are older than an answer may be.
func TestFarAndSilent(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		rtt, answers time.Duration // and until when probes are answered
		late         time.Duration // by which probes are sent after their time, every other one
		down         time.Duration // when that is known
	}{
		{rtt: 150 * time.Millisecond, answers: time.Second, down: 1400*time.Millisecond + 300*time.Millisecond}, // those of 1.0, 1.2 and 1.4 s
		{rtt: 350 * time.Millisecond, answers: time.Second, down: 1400*time.Millisecond + 700*time.Millisecond},
		{rtt: time.Millisecond, answers: time.Second, down: 1400*time.Millisecond + 200*time.Millisecond},
		{rtt: time.Millisecond, answers: time.Second, late: 30 * time.Millisecond, down: 1430*time.Millisecond + 200*time.Millisecond},
		{rtt: 1500 * time.Millisecond, answers: 4 * time.Second, down: 4400*time.Millisecond + patienceMost}, // longer than anybody waits: as long as answers come it is up
	} {
		k, nonce := &track{}, uint64(0)
		answers := map[time.Duration]uint64{}
		var down time.Duration
		for now := time.Duration(0); now < 10*time.Second && down == 0; now += time.Millisecond {
			at := start.Add(now)
			if n := answers[now]; n > 0 {
				k.answered(n, at)
			}
			if k.expired(at) && !k.Up && now > c.answers {
				down = now
			}
			if i := now / interval; now == i*interval+i%2*c.late {
				nonce++
				k.probe(nonce, at)
				if now < c.answers {
					answers[now+c.rtt] = nonce
				}
			}
		}
		if down != c.down {
			t.Errorf("%+v: down at %v: %+v", c, down, k.State)
		}
	}
}

func TestMessage(t *testing.T) {
	for _, m := range []message{{kindProbe, 1}, {kindAnswer, 1<<64 - 1}} {
		b := make([]byte, probeSize)
		b[50] = 7 // is wiped
		m.put(b)
		if got, ok := parse(b); !ok || got != m || b[50] != 0 {
			t.Errorf("%+v is %+v, %v", m, got, ok)
		}
	}
	for _, b := range []string{"", "wf\x01\x00nonce", "wf\x03\x00nonce678", "xf\x01\x00nonce678", "wf\x01\x01nonce678"} {
		if m, ok := parse([]byte(b)); ok {
			t.Errorf("%q is %+v", b, m)
		}
	}
}

func FuzzMessage(f *testing.F) {
	b := make([]byte, probeSize)
	message{kindProbe, 42}.put(b)
	f.Add(b)
	f.Add([]byte("wf\x01\x00nonce678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := parse(b)
		if !ok {
			return
		}
		again := make([]byte, len(b))
		m.put(again)
		if n, ok := parse(again); !ok || n != m {
			t.Errorf("%x is %+v, and then %+v, %v", b, m, n, ok)
		}
	})
}
