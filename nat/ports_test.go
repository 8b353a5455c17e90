package nat

import (
	"math"
	"testing"
)

func TestPortsArePreservedWhereFree(t *testing.T) {
	for _, policy := range []PortPolicy{PortPreserve, PortContiguous} {
		r := newRouter(t, NATConfig{Ports: policy}, Config{})
		for port := uint16(2000); port < 2100; port += 3 {
			if got := r.send(peer1, at(inner1, port), at(remote, 80)).Port(); got != port {
				t.Errorf("%v: %d became %d", policy, port, got)
			}
			if got := r.send(peer2, at(inner2, port), at(remote, 80)).Port(); got == port {
				t.Errorf("%v: %d given twice", policy, port)
			}
		}
		if got := r.send(peer1, at(inner1, 80), at(remote, 80)).Port(); got < 1024 {
			t.Errorf("%v: port %d is outside the range", policy, got)
		}
	}
}

func TestSequentialPortsHaveStepOne(t *testing.T) {
	r := newRouter(t, NATConfig{Ports: PortSequential, PortMin: 3000, PortMax: 3099, Mapping: AddressAndPortDependent}, Config{})
	for i := range uint16(100) {
		if got := r.send(peer1, at(inner1, 9999), at(remote, 1+i)).Port(); got != 3000+i {
			t.Fatalf("mapping %d has port %d", i, got)
		}
	}
	if _, v := r.out(peer1, udpBytes(at(inner1, 9999), at(remote, 5000))); v != NoPort {
		t.Errorf("the range is used up: %v", v)
	}
	r.wait(32) // all end
	for i := range uint16(50) {
		if got := r.send(peer1, at(inner1, 9999), at(other, 1+i)).Port(); got != 3000+i {
			t.Fatalf("second round: mapping %d has port %d", i, got)
		}
	}
	r.wait(15)
	r.send(peer1, at(inner1, 9999), at(other, 1)) // keeps 3000
	r.wait(20)
	for i := range uint16(60) { // from 3050 on, round the end, past the one still taken
		want := 3050 + i
		if want >= 3100 {
			want -= 99
		}
		if got := r.send(peer1, at(inner1, 9999), at(remote, 1+i)).Port(); got != want {
			t.Fatalf("third round: mapping %d has port %d, want %d", i, got, want)
		}
	}
}

func TestRandomPortsAreSpreadEvenly(t *testing.T) { // RFC 6056 section 3.3
	const lo, hi, n, cells = 1024, 65535, 16000, 64
	r := newRouter(t, NATConfig{Ports: PortRandom}, Config{})
	var hist [cells]int
	var order, last float64
	for i := range uint16(n) {
		p := r.send(1+i%8, at(inner1, 10000+i/8), at(remote, 80)).Port()
		if p < lo {
			t.Fatalf("port %d", p)
		}
		hist[int(p-lo)*cells/(hi-lo+1)]++
		if float64(p) > last {
			order++
		}
		last = float64(p)
	}
	chi, want := 0.0, float64(n)/cells
	for _, got := range hist {
		chi += (float64(got) - want) * (float64(got) - want) / want
	}
	if chi > 63+4*math.Sqrt(2*63) { // mean and four deviations of a chi-square variable of 63 degrees of freedom
		t.Errorf("chi-square %.0f over %d cells: %v", chi, cells, hist)
	}
	if order < 0.47*n || order > 0.53*n {
		t.Errorf("%v of %d ports are above the one before", order, n)
	}
}

func TestRandomPortsDependOnTheSeed(t *testing.T) {
	draw := func(seed uint64) (ports [8]uint16) {
		r := newRouter(t, NATConfig{Ports: PortRandom, Seed: seed}, Config{})
		for i := range ports {
			ports[i] = r.send(peer1, at(inner1, 5000+uint16(i)), at(remote, 80)).Port()
		}
		return ports
	}
	if draw(7) != draw(7) {
		t.Error("one seed, different ports")
	}
	if draw(7) == draw(8) {
		t.Error("two seeds, the same ports")
	}
	unseeded := func() (ports [8]uint16) {
		var s portSpace
		s.init(PortRandom, 1024, 65535, portSeed(0), 0, 0)
		for i := range ports {
			m := &mapping{}
			s.take(m, 0, false)
			ports[i] = m.port
		}
		return ports
	}
	if unseeded() == unseeded() {
		t.Error("ports without a seed repeat")
	}
}

func TestAllPortsAreUsedBeforeNoPort(t *testing.T) {
	for _, policy := range []PortPolicy{PortPreserve, PortRandom, PortSequential, PortContiguous} {
		const lo, hi = 2037, 2900 // ends in the midst of words
		r := newRouter(t, NATConfig{Ports: policy, PortMin: lo, PortMax: hi}, Config{})
		seen := map[uint16]bool{}
		for i := range uint16(hi - lo + 1) {
			p := r.send(peer1, at(inner1, 1+7*i), at(remote, 80)).Port()
			if p < lo || p > hi || seen[p] {
				t.Fatalf("%v: mapping %d has port %d, seen before: %v", policy, i, p, seen[p])
			}
			seen[p] = true
		}
		for _, a := range []uint16{1, 50000} {
			if _, v := r.out(peer2, udpBytes(at(inner2, a), at(remote, 80))); v != NoPort {
				t.Errorf("%v: one more: %v", policy, v)
			}
		}
		if r.Mappings() != hi-lo+1 {
			t.Errorf("%v: %d mappings", policy, r.Mappings())
		}
		// TCP has ports of its own, and so has another address.
		if _, v := r.out(peer2, tcpBytes(at(inner2, 1), at(remote, 80), segment{flags: fSYN})); v != Pass {
			t.Errorf("%v: TCP: %v", policy, v)
		}
		if _, v := r.out(peer2, udpBytes(at(inner6, 1), at(remote6, 80))); v != Pass {
			t.Errorf("%v: IPv6: %v", policy, v)
		}
	}
}

func TestPortIsUsedAgainOnlyWhenItsFlowsAreGone(t *testing.T) {
	r := newRouter(t, NATConfig{PortMin: 2000, PortMax: 2000}, Config{})
	x := at(inner1, 5000)
	r.send(peer1, x, at(remote, 80))
	r.send(peer1, x, at(other, 80))
	next := func() Verdict {
		_, v := r.out(peer2, udpBytes(at(inner2, 5000), at(remote, 80)))
		return v
	}
	for _, b := range []struct {
		name string
		end  func()
		want Verdict
	}{
		{"two flows", func() {}, NoPort},
		{"one flow left", func() { r.tab.Remove(r.find(t, x.Port())) }, NoPort},
		{"none left", func() { r.tab.End(r.find(t, x.Port()), Withdrawn) }, Pass},
	} {
		b.end()
		if v := next(); v != b.want {
			t.Errorf("%s: %v, want %v", b.name, v, b.want)
		}
	}
}

// find returns a flow with the inner port given.
func (r *router) find(t *testing.T, port uint16) (found *Flow) {
	t.Helper()
	r.tab.Each(func(f *Flow) {
		if f.Key.SrcPort == port {
			found = f
		}
	})
	if found == nil {
		t.Fatal("no such flow")
	}
	return found
}
