package wgstun

import (
	"bytes"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/traversal/stun"
)

// seeds are packets of both families in both directions.
func seeds(f *testing.F) {
	r := newResponder(f, outerV6)
	for _, e := range ends {
		for _, pkt := range [][]byte{
			udp(e.client, e.server, request(f).Raw),
			echo(e.client.Addr(), e.server.Addr(), 1, 1, []byte("ping")),
			udp(e.client, e.server, []byte("hello")),
			fragmented(udp(e.client, e.server, request(f).Raw)),
			extendedHeader(udp(e.client, e.server, request(f).Raw)),
		} {
			f.Add(pkt)
			for _, answer := range exchange(r, pkt) {
				f.Add(answer)
			}
		}
	}
}

// FuzzWrite: whatever a client sends, at most one packet comes of it, and that goes back to where it came from, from the address that
// was asked, well formed and not much longer.
func FuzzWrite(f *testing.F) {
	seeds(f)
	r := NewResponder(ResponderConfig{Origin: always(outerV6), Rate: -1})
	f.Fuzz(func(t *testing.T, pkt []byte) {
		var asked packet.Packet
		fault := packet.Decode(&asked, bytes.Clone(pkt))
		answers := exchange(r, pkt)
		if len(answers) == 0 {
			return
		}
		if len(answers) > 1 || fault != packet.FaultNone {
			t.Fatalf("%d answers to a packet that decodes as %v", len(answers), fault)
		}
		p := decode(t, answers[0])
		if p.Src != asked.Dst || p.Dst != asked.Src || p.SrcAddr() != ServerV4 && p.SrcAddr() != ServerV6 || !p.Plain {
			t.Errorf("asked by %v at %v, answered from %v to %v", asked.SrcAddr(), asked.DstAddr(), p.SrcAddr(), p.DstAddr())
		}
		switch p.Proto {
		case packet.ProtoUDP:
			if p.SrcPort != Port || p.DstPort != asked.SrcPort || len(p.Buf)-p.Data > stun.MaxAnswerLen {
				t.Errorf("answered from port %d to %d with %d bytes", p.SrcPort, p.DstPort, len(p.Buf))
			}
		case packet.ProtoICMPv4, packet.ProtoICMPv6:
			if len(p.Buf) > len(asked.Buf) || p.ICMPType != 0 && p.ICMPType != 129 {
				t.Errorf("type %d of %d bytes in answer to %d bytes", p.ICMPType, len(p.Buf), len(asked.Buf))
			}
		default:
			t.Errorf("answered with protocol %d", p.Proto)
		}
	})
}

// FuzzReceive: nothing that does not name the transaction of a request that waits is taken, and here none waits.
func FuzzReceive(f *testing.F) {
	seeds(f)
	c, err := NewClient(ClientConfig{Self: clientV6, Server: ServerV6, Send: func([]byte) error { return nil }})
	if err != nil {
		f.Fatal(err)
	}
	c4, err := NewClient(ClientConfig{Self: clientV4, Server: ServerV4, Send: func([]byte) error { return nil }})
	if err != nil {
		f.Fatal(err)
	}
	c.self = netip.AddrPortFrom(c.self.Addr(), ends[1].client.Port()) // as in the seeds
	c4.self = netip.AddrPortFrom(c4.self.Addr(), ends[0].client.Port())
	f.Fuzz(func(t *testing.T, pkt []byte) {
		before := bytes.Clone(pkt)
		if c.Receive(pkt) || c4.Receive(pkt) {
			t.Error("an answer to nothing was taken")
		}
		if !bytes.Equal(before, pkt) {
			t.Error("the packet was changed")
		}
	})
}
