package hotpath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// translation is a packet of a flow that stands, and what it is on the other side of a NAT.
type translation struct {
	nat  *nat.NAT
	flow *nat.Flow
	dir  nat.Dir
	p    packet.Packet // as it arrives; its buffer is changed and restored
	head []byte        // the bytes of it that translation changes, as they arrive
	to   packet.Key
}

var external = netip.MustParseAddr("203.0.113.1")

// translations returns a packet of each direction of one flow, of mtu bytes.
func translations(t testing.TB, proto uint8) (out, in *translation) {
	table := nat.New(nat.Config{})
	n, err := nat.NewNAT(nat.NATConfig{Table: table, Outside: nat.PeerUpstream, Addrs: []netip.Addr{external}, Ports: nat.PortRandom, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close(); table.Close() })
	inner, remote := at(peerAddr, 40000), at(internet, 443)
	build := func(src, dst netip.AddrPort, peer uint16, flags uint8, seq, ack uint32, size int) packet.Packet {
		b := udpPacket(src, dst, size)
		if proto == packet.ProtoTCP {
			b = tcpPacket(src, dst, flags, seq, ack, size)
		}
		p := decode(t, b)
		p.Peer = peer
		return p
	}
	pass := func(v nat.Verdict) {
		if v != nat.Pass {
			t.Fatalf("the flow does not open: %v", v)
		}
	}
	first := build(inner, remote, 1, packet.TCPSyn, 99, 0, 60)
	pass(n.Outbound(&first, 1))
	mapped := first.SrcAddrPort()
	answer := build(remote, mapped, nat.PeerUpstream, packet.TCPSyn|packet.TCPAck, 499, 100, 60)
	pass(n.Inbound(&answer, 1))
	third := build(inner, remote, 1, packet.TCPAck, 100, 500, 60)
	pass(n.Outbound(&third, 1))

	of := func(p packet.Packet) *translation {
		f, d := table.Lookup(&p.Key)
		if f == nil || f.State() != nat.StateAssured {
			t.Fatal("the flow does not stand")
		}
		return &translation{nat: n, flow: f, dir: d, p: p, head: bytes.Clone(p.Buf[:p.Data]), to: f.Onward(d)}
	}
	return of(build(inner, remote, 1, packet.TCPAck, 100, 500, mtu)), of(build(remote, mapped, nat.PeerUpstream, packet.TCPAck, 500, 100, mtu))
}

// restore makes the packet as it has arrived.
func (x *translation) restore() packet.Packet {
	copy(x.p.Buf, x.head)
	return x.p
}

// full is the whole of culvert's: TCP's state followed, the flow kept alive, the packet changed.
func (x *translation) full() bool {
	p := x.restore()
	return x.nat.Translate(&p, x.flow, x.dir, 1) == nat.Pass
}

// rewrite changes the packet and nothing else.
func (x *translation) rewrite() bool {
	p := x.restore()
	packet.Rewrite(&p, &x.to)
	return true
}

// gvisor does the same as rewrite by gVisor's header package.
func (x *translation) gvisor() bool {
	p := x.restore()
	ip := header.IPv4(p.Buf)
	if p.Proto == packet.ProtoTCP {
		l4 := header.TCP(p.Buf[p.L4:])
		if from, to := x.changed(ip); p.Src != x.to.Src {
			l4.UpdateChecksumPseudoHeaderAddress(from, to, true)
			l4.SetSourcePortWithChecksumUpdate(x.to.SrcPort)
			ip.SetSourceAddressWithChecksumUpdate(to)
		} else {
			l4.UpdateChecksumPseudoHeaderAddress(from, to, true)
			l4.SetDestinationPortWithChecksumUpdate(x.to.DstPort)
			ip.SetDestinationAddressWithChecksumUpdate(to)
		}
		return true
	}
	l4 := header.UDP(p.Buf[p.L4:]) // the same once more: behind an interface it would allocate
	if from, to := x.changed(ip); p.Src != x.to.Src {
		l4.UpdateChecksumPseudoHeaderAddress(from, to, true)
		l4.SetSourcePortWithChecksumUpdate(x.to.SrcPort)
		ip.SetSourceAddressWithChecksumUpdate(to)
	} else {
		l4.UpdateChecksumPseudoHeaderAddress(from, to, true)
		l4.SetDestinationPortWithChecksumUpdate(x.to.DstPort)
		ip.SetDestinationAddressWithChecksumUpdate(to)
	}
	return true
}

// changed is the address that translation changes, and what it becomes.
func (x *translation) changed(ip header.IPv4) (from, to tcpip.Address) {
	if x.p.Src != x.to.Src {
		return ip.SourceAddress(), tcpip.AddrFrom4([4]byte(x.to.Src[12:]))
	}
	return ip.DestinationAddress(), tcpip.AddrFrom4([4]byte(x.to.Dst[12:]))
}

// recompute writes the ends and sums the packet anew.
func (x *translation) recompute() bool {
	p := x.restore()
	b, l4 := p.Buf, p.Buf[p.L4:]
	copy(b[12:], x.to.Src[12:])
	copy(b[16:], x.to.Dst[12:])
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:p.L4], 0))
	binary.BigEndian.PutUint16(l4, x.to.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], x.to.DstPort)
	sum := l4[6:8]
	if p.Proto == packet.ProtoTCP {
		sum = l4[16:18]
	}
	sum[0], sum[1] = 0, 0
	binary.BigEndian.PutUint16(sum, ^packet.Sum(l4, packet.PseudoSum(4, x.to.Src, x.to.Dst, p.Proto, len(l4))))
	return true
}

// floor is what restoring costs all of the above.
func (x *translation) floor() bool {
	p := x.restore()
	return p.V != 0
}

func eachTranslation(t testing.TB, fn func(name string, x *translation)) {
	for _, c := range []struct {
		name  string
		proto uint8
	}{{"udp", packet.ProtoUDP}, {"tcp", packet.ProtoTCP}} {
		out, in := translations(t, c.proto)
		fn(c.name+"/out", out)
		fn(c.name+"/in", in)
	}
}

func TestTranslationsAgree(t *testing.T) {
	eachTranslation(t, func(name string, x *translation) {
		if !x.full() {
			t.Fatalf("%s: not passed", name)
		}
		want := bytes.Clone(x.p.Buf)
		if p := decode(t, want); p.SrcAddrPort() != x.to.SrcAddrPort() || p.DstAddrPort() != x.to.DstAddrPort() {
			t.Errorf("%s: became %v to %v", name, p.SrcAddrPort(), p.DstAddrPort())
		}
		for by, fn := range map[string]func() bool{"rewrite": x.rewrite, "gvisor": x.gvisor, "recompute": x.recompute} {
			if fn(); !bytes.Equal(x.p.Buf, want) {
				t.Errorf("%s: %s makes another packet of it\n% x\n% x", name, by, x.p.Buf[:x.p.Data], want[:x.p.Data])
			}
		}
	})
}

// BenchmarkTranslate changes one end of a packet of 1420 bytes. by=culvert follows TCP's state and keeps the flow alive as well;
// by=culvert-rewrite changes the bytes alone, as do by=gvisor and by=recompute, which sums the packet anew. by=floor is what all of them
// take to get the packet back as it was.
func BenchmarkTranslate(b *testing.B) {
	eachTranslation(b, func(name string, x *translation) {
		for _, v := range []struct {
			by string
			fn func() bool
		}{{"culvert", x.full}, {"culvert-rewrite", x.rewrite}, {"gvisor", x.gvisor}, {"recompute", x.recompute}, {"floor", x.floor}} {
			b.Run(name+"/by="+v.by, func(b *testing.B) {
				b.SetBytes(int64(len(x.p.Buf)))
				b.ReportAllocs()
				for b.Loop() {
					if !v.fn() {
						b.Fatal("not passed")
					}
				}
				rate(b, int64(b.N))
			})
		}
	})
}
