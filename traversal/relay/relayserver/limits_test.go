package relayserver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

func TestNotHereIsRateLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, absent := join(t, newServer(t, Config{Admit: everybody}), newKey(t)), newKey(t).Public()
		count := func() (n int) {
			go func() {
				for range 100 {
					a.send(absent, initiation())
				}
				a.frame(derp.FramePing, []byte("theend.."))
			}()
			for {
				typ, _ := a.next()
				if typ == derp.FramePong {
					return n
				}
				n++
			}
		}
		if n := count(); n != notHereBurst {
			t.Errorf("%d answers at once, want %d", n, notHereBurst)
		}
		time.Sleep(time.Second)
		if n := count(); n != notHereRate {
			t.Errorf("%d answers after a second, want %d", n, notHereRate)
		}
	})
}

func TestRecipientsAreBounded(t *testing.T) {
	s := &slot{}
	for i := range 5000 {
		var key wgkey.Public
		binary.BigEndian.PutUint32(key[:], uint32(i))
		s.delivered(key)
		s.delivered(key)
	}
	if n := len(s.takeRecipients()); n != maxRecipients {
		t.Errorf("%d recipients are remembered, want %d", n, maxRecipients)
	}
}

func TestRateIsAnnouncedAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, burst = 100_000, 70_000
		s := newServer(t, Config{Admit: everybody, Rate: rate, Burst: burst})
		a, b := join(t, s, newKey(t)), join(t, s, newKey(t))
		if a.info.TokenBucketBytesPerSecond != rate || a.info.TokenBucketBytesBurst != burst {
			t.Errorf("announced %+v", a.info)
		}
		const packets, size = 500, 1400
		start := time.Now()
		go func() {
			for i := range packets {
				a.send(b.public, numbered(i, size))
			}
		}()
		for i := range packets {
			if _, data := b.receive(); !bytes.Equal(data, numbered(i, size)) {
				t.Fatalf("packet %d is lost: the relay delays, it does not drop", i)
			}
		}
		want := time.Duration(float64(packets*(size+37)-burst) / rate * float64(time.Second))
		if d := time.Since(start); d < want-time.Second || d > want+time.Second {
			t.Errorf("took %v, want %v", d, want)
		}
		if s.Stats().Delayed == 0 {
			t.Error("no delay is counted")
		}
		// A client that waits for its rate can still be ended.
		for range 60 {
			a.send(b.public, numbered(0, size))
			b.receive()
		}
		go s.Close()
		a.expectClosed()
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody, MaxPerAddress: 4, MaxClients: 6, ConnectRate: 1000, ConnectBurst: 1000})
		var held []*peer
		enter := func(from string) refusal {
			t.Helper()
			conn, why := attach(t, s, from)
			if why != 0 {
				return why
			}
			p, err := login(t, s, conn, newKey(t), derp.ClientInfo{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			held = append(held, p)
			return 0
		}
		for i := range 4 {
			if why := enter(fmt.Sprintf("2001:db8::%d", i)); why != 0 {
				t.Fatal(why)
			}
		}
		if why := enter("2001:db8::ffff:1"); why != refusedAddress {
			t.Errorf("a fifth of one /64: %v", why)
		}
		if why := enter("2001:db8:0:1::1"); why != 0 {
			t.Errorf("another /64: %v", why)
		}
		if why := enter("192.0.2.1"); why != 0 {
			t.Errorf("IPv4: %v", why)
		}
		if why := enter("192.0.2.2"); why != refusedFull {
			t.Errorf("a seventh client: %v", why)
		}
		held[0].conn.Close()
		synctest.Wait()
		if why := enter("2001:db8::5"); why != 0 {
			t.Errorf("after one has left: %v", why)
		}
	})
}

func TestHalfOpenHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{Admit: everybody, MaxPerAddress: 100})
		for i := range 100 / 4 {
			conn, why := attach(t, s, "192.0.2.1")
			if why != 0 {
				t.Fatalf("connection %d: %v", i, why)
			}
			defer conn.Close()
		}
		if _, why := attach(t, s, "192.0.2.1"); why != refusedHalfOpen {
			t.Errorf("got %v", why)
		}
		if conn, why := attach(t, s, "192.0.2.2"); why != 0 {
			t.Errorf("another address: %v", why)
		} else {
			conn.Close()
		}
		time.Sleep(DefaultHandshakeTimeout + time.Second)
		for range 50 { // those that are through do not count
			join(t, s, newKey(t))
		}
	})
}

func TestConnectRate(t *testing.T) {
	l := addressLimits{conns: 1000, opening: 1000, rate: 2, burst: 5}
	a := netip.MustParseAddr("192.0.2.1")
	now := int64(1)
	count := func() (n int) {
		for {
			h, why := l.open(a, now)
			if why == refusedConnectRate {
				return n
			}
			h.release()
			h.release() // twice is once
			n++
		}
	}
	if n := count(); n != 5 {
		t.Errorf("%d at once, want 5", n)
	}
	now += int64(time.Second)
	if n := count(); n != 2 {
		t.Errorf("%d after a second, want 2", n)
	}
	if l.sweep(now); len(l.table) != 1 {
		t.Error("an address was forgotten that may not come yet")
	}
	if l.sweep(now + int64(time.Minute)); len(l.table) != 0 {
		t.Error("an address is remembered for nothing")
	}
}
