package exchange

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func numbered(addr, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(addr >> 8), byte(addr)}), uint16(port))
}

func TestTargetsLimitAddresses(t *testing.T) {
	var targets Targets
	for i := range 32 {
		if !targets.Allow(numbered(i, 1), start.Add(time.Duration(i)*time.Second)) {
			t.Fatalf("address %d is refused", i)
		}
	}
	at := start.Add(32 * time.Second)
	if targets.Allow(numbered(32, 1), at) {
		t.Error("33 addresses")
	}
	if !targets.Allow(numbered(0, 1), at) || !targets.Allow(numbered(1, 2), at) {
		t.Error("an address that was probed is refused")
	}
	if !targets.Allow(netip.MustParseAddrPort("[::ffff:203.0.0.2]:1"), at) {
		t.Error("the same address in other words is refused")
	}
	// Addresses 0 to 2 were used again, so that 3 is the first to leave.
	at = start.Add(63*time.Second - 1)
	if targets.Allow(numbered(32, 1), at) {
		t.Error("before any has left")
	}
	if !targets.Allow(numbered(32, 1), at.Add(1)) || targets.Allow(numbered(33, 1), at.Add(1)) {
		t.Error("one leaves, one comes")
	}
}

func TestTargetsLimitEndpoints(t *testing.T) {
	var targets Targets
	for port := range 64 {
		if !targets.Allow(numbered(1, port), start) {
			t.Fatalf("port %d is refused", port)
		}
	}
	if targets.Allow(numbered(1, 64), start) || targets.Allow(numbered(2, 1), start) {
		t.Error("65 endpoints")
	}
	// What was refused has not been counted: none but the 64 fill the window.
	if !targets.Allow(numbered(1, 5), start.Add(time.Minute-1)) || !targets.Allow(numbered(2, 1), start.Add(time.Minute)) {
		t.Error("refused after a minute")
	}

	sweep := Targets{Limits: Limits{Addrs: 1, Endpoints: 3072, Window: time.Second}}
	n := 0
	for port := range 5000 {
		if sweep.Allow(numbered(1, port), start) {
			n++
		}
	}
	if n != 3072 {
		t.Errorf("a sweep of %d", n)
	}
}

// TestTargetsAgainstModel looks back over all that was allowed, at every step.
func TestTargetsAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	limits := Limits{Addrs: 5, Endpoints: 9, Window: 10 * time.Second}
	targets := Targets{Limits: limits}
	type use struct {
		to netip.AddrPort
		at time.Time
	}
	var uses []use
	allowed, refused := 0, 0
	at := start
	for range 20_000 {
		at = at.Add(time.Duration(rng.IntN(1500)) * time.Millisecond)
		to := numbered(rng.IntN(12), rng.IntN(2))
		for len(uses) > 0 && at.Sub(uses[0].at) >= limits.Window {
			uses = uses[1:]
		}
		addrs, endpoints := map[netip.Addr]bool{to.Addr(): true}, map[netip.AddrPort]bool{to: true}
		for _, u := range uses {
			addrs[u.to.Addr()], endpoints[u.to] = true, true
		}
		want := len(addrs) <= limits.Addrs && len(endpoints) <= limits.Endpoints
		if got := targets.Allow(to, at); got != want {
			t.Fatalf("%v: got %v with %d addresses and %d endpoints", to, got, len(addrs), len(endpoints))
		}
		if want {
			allowed++
			uses = append(uses, use{to, at})
		} else {
			refused++
		}
		if len(targets.addrs.last) > limits.Addrs || len(targets.endpoints.last) > limits.Endpoints {
			t.Fatal("the memory is not bounded")
		}
	}
	if allowed < 1000 || refused < 1000 {
		t.Errorf("%d allowed and %d refused test little", allowed, refused)
	}
}
