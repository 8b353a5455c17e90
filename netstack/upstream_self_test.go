package netstack

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// await polls for packets that the node sends into the upstream on its own.
func (h *hub) await(t *testing.T) *packet.Packet {
	t.Helper()
	for range 200 {
		if pkts := h.take(); len(pkts) > 0 {
			return one(t, pkts[:1])
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the node sends nothing")
	return nil
}

// The node's own datagrams leave from the upstream's address and an unpredictable port, and nobody else's answers come in.
func TestNodeAsksThroughTheUpstream(t *testing.T) {
	for _, f := range upFamilies {
		t.Run(f.name, func(t *testing.T) {
			n, w, h := newUpstreamNet(t, UpstreamConfig{})
			server := ap(f.icmpFrom, 53)
			ports := map[uint16]bool{}
			for range 8 {
				c, err := h.u.Dial(t.Context(), "udp", server.String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.Write([]byte("question"))
				p := h.await(t)
				if p.SrcAddr() != f.up || p.DstAddrPort() != server || string(p.Buf[p.Data:]) != "question" {
					t.Fatalf("sent %+v", p.Key)
				}
				ports[p.SrcPort] = true
				h.send(
					udpPacket(ap(f.out, 53), p.SrcAddrPort(), 64, []byte("forged")),
					udpPacket(ap(f.icmpFrom, 54), p.SrcAddrPort(), 64, []byte("forged")),
					udpPacket(server, p.SrcAddrPort(), 64, []byte("answer")),
				)
				c.SetReadDeadline(time.Now().Add(5 * time.Second))
				b := make([]byte, 100)
				if k, err := c.Read(b); err != nil || string(b[:k]) != "answer" {
					t.Errorf("read %q, %v", b[:k], err)
				}
			}
			if len(ports) < 7 {
				t.Errorf("8 questions from the ports %v", ports)
			}
			if got := w.take(); len(got) != 0 {
				t.Errorf("a peer got %d packets", len(got))
			}
			count := 0
			n.table.Each(func(f *nat.Flow) {
				if f.Key.Peer == nat.PeerSelf {
					count++
				}
			})
			if count != 8 {
				t.Errorf("%d flows of the node's own, want 8", count)
			}
		})
	}
}

func TestNodeConnectsThroughTheUpstream(t *testing.T) {
	_, _, h := newUpstreamNet(t, UpstreamConfig{})
	server := ap(upFamilies[0].icmpFrom, 53)
	type dialled struct {
		c   net.Conn
		err error
	}
	done := make(chan dialled, 1)
	go func() {
		c, err := h.u.Dial(t.Context(), "tcp", server.String())
		done <- dialled{c, err}
	}()
	syn := h.await(t)
	if syn.TCPFlags != packet.TCPSyn || syn.SrcAddr() != upV4 || syn.DstAddrPort() != server {
		t.Fatalf("sent %+v", syn.Key)
	}
	h.send(tcpPacket(server, syn.SrcAddrPort(), packet.TCPSyn|packet.TCPAck, 100, syn.Seq+1))
	d := <-done
	if d.err != nil {
		t.Fatal(d.err)
	}
	defer d.c.Close()
	h.await(t) // the handshake's end
	h.send(tcpPacket(server, syn.SrcAddrPort(), packet.TCPFin|packet.TCPAck, 101, syn.Seq+1))
	d.c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := d.c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the server's FIN: %v", err)
	}
}

func TestDialRefusesWhatTheUpstreamDoesNotLeadTo(t *testing.T) {
	_, _, h := newUpstreamNet(t, UpstreamConfig{Routes: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}})
	for _, c := range []struct{ network, address string }{
		{"udp", "9.9.9.9:53"}, {"tcp", "[2001:db8::1]:53"}, {"udp", upV4.String() + ":53"}, {"unix", "10.64.0.1:53"}, {"udp", "resolver.example:53"},
	} {
		if conn, err := h.u.Dial(t.Context(), c.network, c.address); err == nil {
			conn.Close()
			t.Errorf("%s %s: connected", c.network, c.address)
		}
	}
	if len(h.take()) != 0 {
		t.Error("something was sent")
	}
	h.u.Close()
	if conn, err := h.u.Dial(t.Context(), "udp", "10.64.0.1:53"); err == nil {
		conn.Write([]byte("x"))
		conn.Close()
	}
	if len(h.take()) != 0 {
		t.Error("a closed upstream sends")
	}
}
