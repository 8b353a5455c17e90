package nat

import (
	"fmt"
	"net/netip"
	"testing"
)

// hairpin sends a datagram from one inside end to the external end of another and checks who gets it, and from whom.
func (r *router) hairpin(peer uint16, src, dst, wantSrc, wantDst netip.AddrPort, want Verdict) {
	r.t.Helper()
	p, v := r.out(peer, udpBytes(src, dst))
	if v != want {
		r.t.Errorf("%v to %v: %v, want %v", src, dst, v, want)
		return
	}
	if v == Hairpinned && (p.SrcAddrPort() != wantSrc || p.DstAddrPort() != wantDst) {
		r.t.Errorf("%v to %v: arrives as %v to %v, want %v to %v", src, dst, p.SrcAddrPort(), p.DstAddrPort(), wantSrc, wantDst)
	}
}

func TestRFC4787Hairpinning(t *testing.T) { // REQ-9
	for _, a := range families {
		x1, x2 := at(a.inner, 5000), at(a.inner2, 6000)
		t.Run("REQ-9 a: external source address and port, both ways", func(t *testing.T) {
			r := newRouter(t, NATConfig{Hairpin: true, Ports: PortRandom}, Config{})
			e1, e2 := r.send(peer1, x1, at(a.remote, 80)), r.send(peer2, x2, at(a.remote, 80))
			for range 2 {
				r.hairpin(peer1, x1, e2, e1, x2, Hairpinned)
				r.hairpin(peer2, x2, e1, e2, x1, Hairpinned)
			}
			if r.tab.Len() != 3 {
				t.Errorf("%d flows, want 3", r.tab.Len())
			}
		})
		t.Run("off", func(t *testing.T) {
			r := newRouter(t, NATConfig{}, Config{})
			e2 := r.send(peer2, x2, at(a.remote, 80))
			r.hairpin(peer1, x1, e2, netip.AddrPort{}, netip.AddrPort{}, Filtered)
			if r.Mappings() != 1 || r.tab.Len() != 1 {
				t.Errorf("%d mappings, %d flows", r.Mappings(), r.tab.Len())
			}
		})
		t.Run("to nobody", func(t *testing.T) {
			r := newRouter(t, NATConfig{Hairpin: true}, Config{})
			r.hairpin(peer1, x1, at(a.ext, 9), netip.AddrPort{}, netip.AddrPort{}, NoMapping)
			if r.Mappings() != 0 || r.tab.Len() != 0 {
				t.Errorf("%d mappings, %d flows", r.Mappings(), r.tab.Len())
			}
		})
		t.Run("to oneself", func(t *testing.T) {
			for _, filtering := range behaviours {
				r := newRouter(t, NATConfig{Hairpin: true, Filtering: filtering}, Config{})
				e1 := r.send(peer1, x1, at(a.remote, 80))
				for range 2 {
					r.hairpin(peer1, x1, e1, e1, x1, Hairpinned)
				}
			}
		})
		t.Run("filters open by sending, as for two NATs", func(t *testing.T) {
			for _, filtering := range behaviours {
				for _, mapping := range behaviours[:1] {
					r := newRouter(t, NATConfig{Hairpin: true, Mapping: mapping, Filtering: filtering}, Config{})
					e1, e2 := r.send(peer1, x1, at(a.remote, 80)), r.send(peer2, x2, at(a.remote, 80))
					first := Filtered
					if filtering == EndpointIndependent {
						first = Hairpinned
					}
					r.hairpin(peer1, x1, e2, e1, x2, first)
					r.hairpin(peer1, x1, e2, e1, x2, first)
					r.hairpin(peer2, x2, e1, e2, x1, Hairpinned) // 1 has sent to 2
					r.hairpin(peer1, x1, e2, e1, x2, Hairpinned)
					if r.tab.Len() != 3 || r.Mappings() != 2 {
						t.Errorf("%v: %d flows, %d mappings", filtering, r.tab.Len(), r.Mappings())
					}
				}
			}
		})
		t.Run("a filter that was closed opens for the next packet", func(t *testing.T) {
			// 2 sends to another port of the external address, which by its filter opens it to 1.
			r := newRouter(t, NATConfig{Hairpin: true, Filtering: AddressDependent}, Config{})
			x3 := at(a.inner, 7000)
			e1, e2 := r.send(peer1, x1, at(a.remote, 80)), r.send(peer2, x2, at(a.remote, 80))
			e3 := r.send(peer1, x3, at(a.remote, 80))
			r.hairpin(peer1, x1, e2, e1, x2, Filtered)
			r.hairpin(peer2, x2, e3, e2, x3, Filtered)
			r.hairpin(peer1, x1, e2, e1, x2, Hairpinned)
			r.hairpin(peer2, x2, e1, e2, x1, Hairpinned)
		})
		t.Run("both mappings live while the conversation does", func(t *testing.T) {
			r := newRouter(t, NATConfig{Hairpin: true}, Config{})
			e1, e2 := r.send(peer1, x1, at(a.remote, 80)), r.send(peer2, x2, at(a.remote, 80))
			for range 5 {
				r.hairpin(peer1, x1, e2, e1, x2, Hairpinned)
				r.hairpin(peer2, x2, e1, e2, x1, Hairpinned)
				r.wait(200)
			}
			if r.Mappings() != 2 || r.tab.Len() != 1 {
				t.Errorf("%d mappings, %d flows", r.Mappings(), r.tab.Len())
			}
			r.wait(102)
			if r.Mappings() != 0 || r.tab.Len() != 0 {
				t.Errorf("afterwards %d mappings, %d flows", r.Mappings(), r.tab.Len())
			}
		})
		t.Run("the own address from outside is forged", func(t *testing.T) {
			r := newRouter(t, NATConfig{Hairpin: true}, Config{})
			e1 := r.send(peer1, x1, at(a.remote, 80))
			r.arrives(at(a.ext, 99), e1, x1, Filtered)
		})
		t.Run("and from inside", func(t *testing.T) {
			r := newRouter(t, NATConfig{Hairpin: true}, Config{})
			if _, v := r.out(peer1, udpBytes(at(a.ext, 99), at(a.remote, 80))); v != NoMapping {
				t.Error(v)
			}
		})
	}
}

func TestRFC5382Hairpinning(t *testing.T) { // REQ-8
	for _, filtering := range behaviours {
		t.Run(fmt.Sprint(filtering), func(t *testing.T) {
			r := newRouter(t, NATConfig{Hairpin: true, Filtering: filtering}, Config{})
			x1, x2 := at(inner1, 5000), at(inner2, 6000)
			open := func(peer uint16, src netip.AddrPort) netip.AddrPort {
				p, v := r.out(peer, tcpBytes(src, at(remote, 80), segment{flags: fSYN, seq: 1, win: 1000}))
				if v != Pass {
					t.Fatal(v)
				}
				return p.SrcAddrPort()
			}
			e1, e2 := open(peer1, x1), open(peer2, x2)
			send := func(peer uint16, src, dst, wantSrc, wantDst netip.AddrPort, s segment, want Verdict) {
				t.Helper()
				p, v := r.out(peer, tcpBytes(src, dst, s))
				if v != want || v == Hairpinned && (p.SrcAddrPort() != wantSrc || p.DstAddrPort() != wantDst) {
					t.Errorf("%v to %v: %v, %v to %v", src, dst, v, p.SrcAddrPort(), p.DstAddrPort())
				}
			}
			first := Hairpinned
			if filtering != EndpointIndependent {
				first = Filtered
			}
			syn1, syn2 := segment{flags: fSYN, seq: isnA, win: 1000}, segment{flags: fSYN, seq: isnB, win: 1000}
			send(peer1, x1, e2, e1, x2, syn1, first)
			send(peer2, x2, e1, e2, x1, syn2, Hairpinned)
			send(peer1, x1, e2, e1, x2, syn1, Hairpinned)
			send(peer1, x1, e2, e1, x2, segment{flags: fSYN | fACK, seq: isnA, ack: isnB + 1, win: 1000}, Hairpinned)
			send(peer2, x2, e1, e2, x1, segment{flags: fSYN | fACK, seq: isnB, ack: isnA + 1, win: 1000}, Hairpinned)
			k := decode(t, tcpBytes(x1, e2, syn1)).Key
			k.Peer = peer1
			if f, _ := r.tab.Lookup(&k); f == nil || f.TCP() != TCPEstablished {
				t.Errorf("flow %v", f)
			}
		})
	}
}
