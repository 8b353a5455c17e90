package gather

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/portmap"
)

// natpmp is a gateway's service by RFC 6886, whose mappings are real.
type natpmp struct {
	gateway *testnet.Gateway

	mu       sync.Mutex // guards the following
	external netip.Addr
	asked    int
	forwards map[uint16]func() // by internal port
}

// startNATPMP starts it; the mapping of a port gets the port 10,000 above.
func startNATPMP(w *world) *natpmp {
	w.Helper()
	p := &natpmp{gateway: w.site.Gateway, external: w.site.WAN()[0], forwards: map[uint16]func(){}}
	c, err := w.site.Self().ListenPacket(netip.AddrPortFrom(w.site.Addr(false), 5351))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1100)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if answer := p.answer(buf[:n], from); answer != nil {
				c.WriteToUDPAddrPort(answer, from)
			}
		}
	}()
	return p
}

func (p *natpmp) answer(b []byte, from netip.AddrPort) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	head := func(result uint16) []byte {
		a := binary.BigEndian.AppendUint16([]byte{0, b[1] | 0x80}, result)
		return binary.BigEndian.AppendUint32(a, uint32(time.Now().Unix()))
	}
	switch {
	case len(b) < 2:
		return nil
	case b[0] != 0:
		return head(1) // unsupported version
	case b[1] == 0:
		a := p.external.As4()
		return append(head(0), a[:]...)
	case b[1] != 1 || len(b) < 12:
		return head(5)
	}
	inner, lifetime := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint32(b[8:])
	if remove := p.forwards[inner]; remove != nil {
		remove()
		delete(p.forwards, inner)
	}
	outer := uint16(0)
	if lifetime > 0 {
		outer = inner + 10000
		p.forwards[inner] = p.gateway.Forward(packet.ProtoUDP, outer, netip.AddrPortFrom(from.Addr(), inner))
	}
	a := binary.BigEndian.AppendUint16(head(0), inner)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(a, outer), lifetime)
}

// state is how often it was asked, and how many mappings there are.
func (p *natpmp) state() (asked, mappings int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked, len(p.forwards)
}

// mapper configures port mapping for a host in memory.
func (w *world) mapper(h *testnet.Host) *portmap.Config {
	return &portmap.Config{
		Secret: []byte("x"),
		Gateways: func() ([]portmap.Gateway, error) {
			return []portmap.Gateway{{Addr: w.site.Addr(false), Local: h.Addr()}}, nil
		},
		Dial: func(ctx context.Context, network string, _ netip.Addr, remote netip.AddrPort) (net.Conn, error) {
			return h.Dial(ctx, network, remote.String())
		},
		ListenPacket: func(local netip.AddrPort) (net.PacketConn, error) { return h.ListenPacket(local) },
		ListenGroup: func(_ string, group netip.AddrPort) (net.PacketConn, error) {
			return h.ListenPacket(netip.AddrPortFrom(netip.Addr{}, group.Port()))
		},
	}
}

// mapped starts a node with port mapping on a host of its own.
func (w *world) mapped(change func(*Config)) *node {
	h := w.site.Host("mapped", testnet.HostConfig{})
	n := newNode(w.T, h, func(c *Config) {
		c.PortMap = w.mapper(h)
		if change != nil {
			change(c)
		}
	})
	return n
}

func TestPortMapping(t *testing.T) {
	inWorld(t, testnet.PRCR, testnet.SiteConfig{}, func(w *world) {
		p := startNATPMP(w)
		n := w.mapped(nil)
		n.start()
		if first := n.untilFirst(); first > 100*time.Millisecond {
			t.Errorf("first after %v, which is no time to wait for gateways", first)
		}
		pass(5 * time.Second)
		want := netip.AddrPortFrom(w.site.WAN()[0], port+10000)
		if got := n.kinds(exchange.Mapped); len(got) != 1 || got[0] != want {
			t.Fatalf("mapped %v, want %v; %+v", got, want, n.PortMapping())
		}
		m := n.PortMapping()
		if !m.On || !m.Active || len(m.Mappings) != 1 || m.Mappings[0].DoubleNAT || len(m.Gateways) != 1 || !n.Local().Complete {
			t.Errorf("%+v", m)
		}
		for _, c := range n.Candidates() {
			if c.Kind == exchange.Mapped && (c.Source != "nat-pmp 192.168.1.1" || c.Preference <= preferReflexive || c.Base.Port() != port || c.Since.IsZero()) {
				t.Errorf("%+v", c)
			}
		}

		n.SetPortMapping(false)
		pass(5 * time.Second)
		if asked, left := p.state(); left != 0 || asked == 0 || len(n.kinds(exchange.Mapped)) != 0 {
			t.Errorf("switched off: %d mappings are left, %v", left, n.lines())
		}
		n.SetPortMapping(true)
		pass(5 * time.Second)
		if len(n.kinds(exchange.Mapped)) != 1 {
			t.Errorf("switched on again: %v", n.lines())
		}
		n.stop()
		if _, left := p.state(); left != 0 {
			t.Errorf("%d mappings are left at the end", left)
		}
	})
}

// A gateway with a private outer address is behind another NAT: its mapping is told, as the last resort.
func TestPortMappingBehindTwoNATs(t *testing.T) {
	inWorld(t, testnet.CGNE, testnet.SiteConfig{}, func(w *world) {
		startNATPMP(w)
		n := w.mapped(nil)
		defer n.stop()
		n.start()
		pass(5 * time.Second)
		list := n.Local().Candidates
		last := list[len(list)-1]
		if last.Kind != exchange.Mapped || last.WG.Addr() != w.site.WAN()[0] || last.Preference >= preferOwnPort {
			t.Errorf("%v", list)
		}
	})
}

func TestNoPortMappingWhereItIsOfNoUse(t *testing.T) {
	for what, run := range map[string]struct {
		typ    testnet.RouterType
		change func(*Config)
	}{
		"no NAT": {testnet.Pub, nil},
		"a gateway in the mesh": {testnet.PRC, func(c *Config) {
			c.Mesh = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("192.168.1.1/32")} }
		}},
		"switched off": {testnet.PRC, func(c *Config) { c.PortMap = nil }},
	} {
		inWorld(t, run.typ, testnet.SiteConfig{}, func(w *world) {
			p := startNATPMP(w)
			n := w.mapped(run.change)
			defer n.stop()
			n.Eager(true)
			n.start()
			pass(time.Minute)
			if asked, _ := p.state(); asked != 0 || len(n.kinds(exchange.Mapped)) != 0 || !n.Local().Complete {
				t.Errorf("%s: asked %d times, %+v", what, asked, n.Local())
			}
		})
	}
}

// Without any server that would tell of a NAT, a private address calls for a mapping; and the mapping is all there is.
func TestPortMappingWithoutServers(t *testing.T) {
	inWorld(t, testnet.Sym, testnet.SiteConfig{}, func(w *world) {
		startNATPMP(w)
		n := w.mapped(nil)
		defer n.stop()
		n.start([]string{}...)
		n.SetServers(nil, nil)
		pass(5 * time.Second)
		if len(n.kinds(exchange.Mapped)) != 1 {
			t.Errorf("%v", n.lines())
		}
	})
}
