package relayserver

import (
	"net"
	"testing"

	"culvert.dev/culvert/traversal/relay/derp"
)

func TestLimitsChangeWhileTheRelayRuns(t *testing.T) {
	s := newServer(t, Config{Admit: everybody, MaxClients: 2, MaxPerAddress: 2})
	a := join(t, s, newKey(t))
	join(t, s, newKey(t))
	refused := func(from string) refusal {
		t.Helper()
		conn, why := attach(t, s, from)
		if why == 0 {
			conn.Close()
		}
		return why
	}
	if why := refused("192.0.2.9"); why != refusedFull {
		t.Errorf("third client of two: %q", why)
	}
	if err := s.SetLimits(Limits{MaxClients: 100, MaxPerAddress: 2, Rate: 5000, Burst: 100_000}); err != nil {
		t.Fatal(err)
	}
	if why := refused("192.0.2.1"); why != refusedAddress {
		t.Errorf("third client of an address that may have two: %q", why)
	}
	if why := refused("192.0.2.9"); why != 0 {
		t.Errorf("there is room, but: %q", why)
	}
	typ, payload := a.next()
	if typ != derp.FrameServerInfo {
		t.Fatalf("got %v, want the new limits", typ)
	}
	info, err := derp.OpenServerInfo(a.key, s.public, payload)
	if err != nil || info.TokenBucketBytesPerSecond != 5000 || info.TokenBucketBytesBurst != 100_000 {
		t.Errorf("told %+v, %v", info, err)
	}
	if err := s.SetLimits(Limits{MaxPerAddress: 3, Rate: 5000, Burst: 100_000}); err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	var why refusal
	if conn, why = attach(t, s, "192.0.2.1"); why != 0 {
		t.Errorf("third client of an address that may have three: %q", why)
	} else {
		conn.Close()
	}
	if err := s.SetLimits(Limits{MaxClients: -1}); err == nil {
		t.Error("a negative limit is taken")
	}
	if b := s.bounds.Load(); b.maxClients != DefaultMaxClients || b.rate != 5000 {
		t.Errorf("after an error: %+v", b)
	}
}

// A client that sends too fast is slowed down from the moment on that a rate is set.
func TestRateSetLaterIsKept(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	a, b := join(t, s, newKey(t)), newKey(t).Public()
	if err := s.SetLimits(Limits{Rate: 1 << 20, Burst: derp.HeaderLen + maxFrame}); err != nil {
		t.Fatal(err)
	}
	if typ, _ := a.next(); typ != derp.FrameServerInfo {
		t.Fatalf("got %v", typ)
	}
	for range 3 {
		a.send(b, make([]byte, 60_000))
	}
	a.sync()
	if n := s.Stats().Delayed; n == 0 {
		t.Error("was not held to its rate")
	}
}
