package wgstun

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// talk makes a client whose packets go to handle, which may give back packets for it.
func talk(t testing.TB, self, server netip.Addr, handle func(pkt []byte, c *Client)) *Client {
	t.Helper()
	var c *Client
	c, err := NewClient(ClientConfig{Self: self, Server: server, Send: func(pkt []byte) error {
		handle(bytes.Clone(pkt), c)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientAgainstResponder(t *testing.T) {
	for _, e := range ends {
		for _, outer := range []netip.AddrPort{outerV4, outerV6} {
			r := newResponder(t, outer)
			c := talk(t, e.client.Addr(), e.server.Addr(), func(pkt []byte, c *Client) {
				p := decode(t, pkt)
				if p.SrcAddr() != e.client.Addr() || p.DstAddrPort() != e.server || p.SrcPort < 49152 {
					t.Errorf("%s: request from %v to %v", e.name, p.SrcAddrPort(), p.DstAddrPort())
				}
				for _, answer := range exchange(r, pkt) {
					if !c.Receive(answer) {
						t.Errorf("%s: the answer is not taken: %x", e.name, answer)
					}
				}
			})
			a, err := c.Query(t.Context())
			if err != nil || a.Mapped != outer {
				t.Errorf("%s: got %v, %v; want %v", e.name, a.Mapped, err, outer)
			}
		}
	}
}

// TestClientTakesOnlyTheAnswer changes one thing of a correct answer at a time.
func TestClientTakesOnlyTheAnswer(t *testing.T) {
	for _, e := range ends {
		other := netip.AddrPortFrom(e.server.Addr().Next(), Port)
		rebuild := func(p *packet.Packet, src, dst netip.AddrPort) []byte { return udp(src, dst, p.Buf[p.Data:]) }
		for name, spoil := range map[string]func(b []byte, p *packet.Packet) []byte{
			"another source": func(_ []byte, p *packet.Packet) []byte { return rebuild(p, other, p.DstAddrPort()) },
			"another source port": func(_ []byte, p *packet.Packet) []byte {
				return rebuild(p, netip.AddrPortFrom(p.SrcAddr(), 53), p.DstAddrPort())
			},
			"another destination": func(_ []byte, p *packet.Packet) []byte {
				return rebuild(p, p.SrcAddrPort(), netip.AddrPortFrom(other.Addr(), p.DstPort))
			},
			"another port": func(_ []byte, p *packet.Packet) []byte {
				return rebuild(p, p.SrcAddrPort(), netip.AddrPortFrom(p.DstAddr(), p.DstPort^1))
			},
			"a wrong checksum": func(b []byte, _ *packet.Packet) []byte { return corrupt(b, len(b)-1) },
			"another transaction": func(_ []byte, p *packet.Packet) []byte {
				return udp(p.SrcAddrPort(), p.DstAddrPort(), corrupt(p.Buf[p.Data:], 15))
			},
			"no magic cookie": func(_ []byte, p *packet.Packet) []byte {
				return udp(p.SrcAddrPort(), p.DstAddrPort(), corrupt(p.Buf[p.Data:], 5))
			},
			"something behind it": func(_ []byte, p *packet.Packet) []byte {
				return udp(p.SrcAddrPort(), p.DstAddrPort(), append(bytes.Clone(p.Buf[p.Data:]), 0))
			},
			"the first half":        func(b []byte, _ *packet.Packet) []byte { return b[:len(b)/2] },
			"an echo":               func(_ []byte, p *packet.Packet) []byte { return echo(p.SrcAddr(), p.DstAddr(), 1, 1, p.Buf[p.Data:]) },
			"the request come back": func(_ []byte, p *packet.Packet) []byte { return rebuild(p, p.DstAddrPort(), p.SrcAddrPort()) },
			"a fragment":            func(b []byte, _ *packet.Packet) []byte { return fragmented(b) },
			"IP options":            func(b []byte, _ *packet.Packet) []byte { return extendedHeader(b) },
		} {
			r := newResponder(t, outerV4)
			taken := 0
			c := talk(t, e.client.Addr(), e.server.Addr(), func(pkt []byte, c *Client) {
				answer := exchange(r, pkt)[0]
				if c.Receive(spoil(bytes.Clone(answer), decode(t, answer))) {
					t.Errorf("%s: %s is taken", e.name, name)
				}
				if c.Receive(answer) { // it has done no harm
					taken++
				}
			})
			if a, err := c.Query(t.Context()); err != nil || a.Mapped != outerV4 || taken != 1 {
				t.Errorf("%s: after %s: %v, %v", e.name, name, a.Mapped, err)
			}
		}
	}
}

func TestClientTakesNoTruncatedAnswer(t *testing.T) {
	for _, e := range ends {
		r := newResponder(t, outerV4)
		c := talk(t, e.client.Addr(), e.server.Addr(), func(pkt []byte, c *Client) {
			answer := exchange(r, pkt)[0]
			for n := range len(answer) {
				if c.Receive(answer[:n]) || c.Receive(shorten(answer, n)) {
					t.Errorf("%s: %d bytes of %d are taken for an answer", e.name, n, len(answer))
				}
			}
			c.Receive(answer)
		})
		if a, err := c.Query(t.Context()); err != nil || a.Mapped != outerV4 {
			t.Errorf("%s: %v, %v", e.name, a.Mapped, err)
		}
	}
}

// fragmented makes a packet the first fragment of a larger datagram.
func fragmented(b []byte) []byte {
	if b[0]>>4 == 4 {
		b[6] = 0x20
		fixHeader(b)
		return b
	}
	return insert6(b, 44, []byte{packet.ProtoUDP, 0, 0, 1, 0, 0, 0, 1})
}

// extendedHeader adds an option that says nothing.
func extendedHeader(b []byte) []byte {
	if b[0]>>4 == 4 {
		b = append(append(bytes.Clone(b[:20]), 1, 1, 1, 1), b[20:]...)
		b[0], b[3] = 0x46, b[3]+4
		fixHeader(b)
		return b
	}
	return insert6(b, 60, []byte{packet.ProtoUDP, 0, 1, 4, 0, 0, 0, 0})
}

func insert6(b []byte, next uint8, header []byte) []byte {
	b = append(append(bytes.Clone(b[:40]), header...), b[40:]...)
	b[5], b[6] = b[5]+byte(len(header)), next
	return b
}

// TestManyQueriesAtOnce: every request is answered with another port, so that no two questions may get one answer.
func TestManyQueriesAtOnce(t *testing.T) {
	const n = 20
	var port atomic.Uint32
	r := NewResponder(ResponderConfig{Origin: func([]byte) (netip.AddrPort, bool) {
		return netip.AddrPortFrom(outerV4.Addr(), uint16(port.Add(1))), true
	}})
	defer r.Close()
	var mu sync.Mutex
	c := talk(t, clientV6, ServerV6, func(pkt []byte, c *Client) {
		mu.Lock()
		answer := exchange(r, pkt)[0]
		mu.Unlock()
		c.Receive(answer)
	})
	results := make(chan netip.AddrPort)
	for range n {
		go func() {
			a, err := c.Query(t.Context())
			if err != nil {
				t.Error(err)
			}
			results <- a.Mapped
		}()
	}
	seen := map[netip.AddrPort]bool{}
	for range n {
		a := <-results
		if seen[a] {
			t.Errorf("%v is the answer to two questions", a)
		}
		seen[a] = true
	}
}

func TestLostRequestsAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResponder(t, outerV4)
		sent := 0
		c := talk(t, clientV6, ServerV6, func(pkt []byte, c *Client) {
			if sent++; sent == 4 {
				c.Receive(exchange(r, pkt)[0])
			}
		})
		if a, err := c.Query(t.Context()); err != nil || a.Mapped != outerV4 {
			t.Errorf("got %v, %v", a.Mapped, err)
		}
	})
}

func TestNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := 0
		c := talk(t, clientV6, ServerV6, func([]byte, *Client) { sent++ })
		began := time.Now()
		_, err := c.Query(t.Context())
		if err == nil || !strings.Contains(err.Error(), ServerV6.String()) {
			t.Errorf("error %v, want one that names the server", err)
		}
		if took := time.Since(began); sent < 6 || took > 30*time.Second {
			t.Errorf("%d requests in %v", sent, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := c.Query(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the context's", err)
		}
	})
}

func TestSendErrorIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := errors.New("the tunnel is closed")
		c, err := NewClient(ClientConfig{Self: clientV6, Server: ServerV6, Send: func([]byte) error { return closed }})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Query(t.Context()); !errors.Is(err, closed) {
			t.Errorf("error %v, want %v", err, closed)
		}
	})
}

func TestImpossibleEndpointIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResponder(t, outerV4)
		c := talk(t, clientV6, ServerV6, func(pkt []byte, c *Client) {
			answer := exchange(r, pkt)[0]
			p := decode(t, answer)
			msg := bytes.Clone(p.Buf[p.Data:])
			for at := 20; at+4 <= len(msg); at += 4 + int(msg[at+3]) {
				if msg[at] == 0 && msg[at+1] == 0x20 { // XOR-MAPPED-ADDRESS
					copy(msg[at+6:], msg[4:6]) // port 0
				}
			}
			msg[2], msg[3] = 0, 12
			c.Receive(udp(p.SrcAddrPort(), p.DstAddrPort(), msg[:32])) // without the fingerprint
		})
		if a, err := c.Query(t.Context()); err == nil {
			t.Errorf("got %v without an error", a.Mapped)
		}
	})
}

func TestClientConfig(t *testing.T) {
	send := func([]byte) error { return nil }
	for name, c := range map[string]ClientConfig{
		"no own address":    {Server: ServerV6, Send: send},
		"no server":         {Self: clientV6, Send: send},
		"nothing to send":   {Self: clientV6, Server: ServerV6},
		"two families":      {Self: clientV4, Server: ServerV6, Send: send},
		"itself":            {Self: ServerV6, Server: ServerV6, Send: send},
		"a group":           {Self: clientV6, Server: netip.MustParseAddr("ff02::1"), Send: send},
		"unspecified":       {Self: netip.IPv6Unspecified(), Server: ServerV6, Send: send},
		"v4-mapped as IPv6": {Self: netip.MustParseAddr("::ffff:10.0.0.1"), Server: ServerV4, Send: send},
	} {
		if _, err := NewClient(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
