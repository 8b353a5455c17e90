package nat

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// established returns a router with an answered flow, and a packet of each direction of it.
func established(t testing.TB, proto uint8, cfg NATConfig) (r *router, f *Flow, out, in *packet.Packet) {
	r = newRouter(t, cfg, Config{})
	x, y := at(inner1, 5000), at(remote, 443)
	send := func(s segment) []byte {
		if proto == packet.ProtoTCP {
			return tcpBytes(x, y, s)
		}
		return udpBytes(x, y)
	}
	p, v := r.out(peer1, send(segment{flags: fSYN, seq: 1, win: 100}))
	if v != Pass {
		t.Fatal(v)
	}
	ext := p.SrcAddrPort()
	answer := func(s segment) []byte {
		if proto == packet.ProtoTCP {
			return tcpBytes(y, ext, s)
		}
		return udpBytes(y, ext)
	}
	r.in(answer(segment{flags: fSYN | fACK, seq: 1, ack: 2, win: 60000}))
	r.out(peer1, send(segment{flags: fACK, seq: 2, ack: 2, win: 60000}))
	out = decode(t, send(segment{flags: fACK, seq: 2, ack: 2, win: 60000, n: 1360}))
	out.Peer = peer1
	in = decode(t, answer(segment{flags: fACK, seq: 2, ack: 2, win: 60000, n: 1360}))
	in.Peer = outside
	f, _ = r.tab.Lookup(&out.Key)
	if f == nil || f.State() != StateAssured {
		t.Fatal("not established")
	}
	return r, f, out, in
}

func TestHitPathDoesNotAllocate(t *testing.T) {
	for name, cfg := range map[string]NATConfig{
		"default": {}, "strict": {Mapping: AddressAndPortDependent, Filtering: AddressDependent, StrictRefresh: true},
	} {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			r, f, out, in := established(t, proto, cfg)
			o, i := *out, *in
			bufO, bufI := append([]byte(nil), o.Buf...), append([]byte(nil), i.Buf...)
			for what, fn := range map[string]func() Verdict{
				"Translate": func() Verdict {
					*out, *in = o, i
					copy(out.Buf, bufO)
					copy(in.Buf, bufI)
					return max(r.Translate(out, f, Original, 1), r.Translate(in, f, Reply, 1))
				},
				"Outbound and Inbound": func() Verdict {
					*out, *in = o, i
					copy(out.Buf, bufO)
					copy(in.Buf, bufI)
					return max(r.Outbound(out, 1), r.Inbound(in, 1))
				},
			} {
				if n := testing.AllocsPerRun(200, func() {
					if v := fn(); v != Pass {
						t.Fatal(v)
					}
				}); n != 0 {
					t.Errorf("%s, protocol %d, %s: %v allocations", name, proto, what, n)
				}
			}
		}
	}
}

// TestConcurrentUse is for the race detector: flows open, answer, hairpin and end from many sides at once, and nothing is left over.
func TestConcurrentUse(t *testing.T) {
	for _, cfg := range []NATConfig{
		{Hairpin: true, Filtering: AddressDependent, StrictRefresh: true},
		{Hairpin: true, Mapping: AddressDependent, Ports: PortContiguous},
	} {
		r := newRouter(t, cfg, Config{Max: 300, MaxPerPeer: 100})
		var wg sync.WaitGroup
		for g := range uint16(4) {
			wg.Go(func() {
				host := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + g%2)})
				for i := range uint16(1500) {
					now := int64(i) * 1e8
					send := func(peer uint16, b []byte) (netip.AddrPort, Verdict) {
						p := decode(t, b)
						p.Peer = peer
						v := r.Outbound(p, now)
						return p.SrcAddrPort(), v
					}
					e, v := send(1+g%2, udpBytes(at(host, 5000+i%40), at(remote, 80+i%3)))
					if v == Pass {
						p := decode(t, udpBytes(at(remote, 80+i%5), e))
						r.Inbound(p, now)
						send(2-g%2, udpBytes(at(host.Next(), 7000+i%9), e))
					}
					send(1+g%2, tcpBytes(at(host, 5000+i%7), at(remote, 80), segment{flags: fSYN, seq: uint32(i), win: 9}))
					if i%50 == 0 {
						r.tab.Expire(now)
						r.tab.Recheck(func(f *Flow) bool { return f.Key.SrcPort%3 != 0 })
					}
				}
			})
		}
		wg.Wait()
		r.tab.Close()
		if n := r.Mappings(); n != 0 {
			t.Errorf("%d mappings without a flow", n)
		}
		for _, e := range append(r.v4, r.v6...) {
			for i := range e.spaces {
				for _, w := range e.spaces[i].used {
					if w != 0 {
						t.Fatalf("ports of protocol %d are still taken", i)
					}
				}
			}
		}
		for i := range r.shards {
			if n := len(r.shards[i].permits); n != 0 {
				t.Errorf("%d permits left", n)
			}
		}
	}
}

func BenchmarkTranslate(b *testing.B) {
	for name, proto := range map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP} {
		b.Run(name, func(b *testing.B) {
			r, f, out, _ := established(b, proto, NATConfig{})
			was := out.Key
			b.ReportAllocs()
			for b.Loop() {
				if r.Translate(out, f, Original, 1) != Pass {
					b.Fatal("not passed")
				}
				packet.Rewrite(out, &was) // costs about as much as the translation's own
			}
		})
	}
}

func BenchmarkTranslateParallel(b *testing.B) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r, f, out, _ := established(b, packet.ProtoTCP, NATConfig{})
		was := out.Key
		for pb.Next() {
			r.Translate(out, f, Original, 1)
			packet.Rewrite(out, &was)
		}
	})
}

func BenchmarkOutbound(b *testing.B) {
	r, _, out, _ := established(b, packet.ProtoUDP, NATConfig{})
	was := out.Key
	b.ReportAllocs()
	for b.Loop() {
		if r.Outbound(out, 1) != Pass {
			b.Fatal("not passed")
		}
		packet.Rewrite(out, &was)
	}
}

// BenchmarkOpen opens flows of ever new inner ends and removes them, ports included.
func BenchmarkOpen(b *testing.B) {
	for _, ports := range []PortPolicy{PortPreserve, PortRandom} {
		b.Run(ports.String(), func(b *testing.B) {
			r := newRouter(b, NATConfig{Ports: ports}, Config{})
			k := decode(b, udpBytes(at(inner1, 5000), at(remote, 443))).Key
			k.Peer = peer1
			b.ReportAllocs()
			i := uint32(0)
			for b.Loop() {
				i++
				k.SrcPort = uint16(1024 + i%60000)
				binary.BigEndian.PutUint16(k.Src[14:], uint16(i>>8))
				f := &Flow{Key: k}
				if v := r.Open(f, 1); v != Pass {
					b.Fatal(v)
				}
				r.tab.Remove(f)
			}
		})
	}
}
