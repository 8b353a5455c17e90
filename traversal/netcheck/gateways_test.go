package netcheck

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/portmap"
)

// pmpGateway is a gateway with NAT-PMP (RFC 6886) that grants every port as it is asked for.
type pmpGateway struct {
	conn     *testnet.Socket
	external netip.Addr
	mapped   map[uint16]uint32 // lifetimes by port
	deleted  int
	done     chan struct{}
}

func (w *world) pmp(external string) *pmpGateway {
	w.Helper()
	c, err := w.site.Self().ListenPacket(netip.AddrPortFrom(w.site.Addr(false), 5351))
	if err != nil {
		w.Fatal(err)
	}
	g := &pmpGateway{conn: c, external: netip.MustParseAddr(external), mapped: map[uint16]uint32{}, done: make(chan struct{})}
	go g.serve()
	w.Cleanup(func() {
		c.Close()
		<-g.done
	})
	w.cfg.NoPortMapping = false
	w.cfg.PortMap = portmap.Config{
		Gateways: func() ([]portmap.Gateway, error) {
			return []portmap.Gateway{{Addr: w.site.Addr(false), Local: w.host.Addr(), Interface: "eth0"}}, nil
		},
		Dial: func(ctx context.Context, network string, _ netip.Addr, remote netip.AddrPort) (net.Conn, error) {
			return w.host.Dial(ctx, network, remote.String())
		},
		ListenPacket: func(local netip.AddrPort) (net.PacketConn, error) { return w.host.ListenPacket(local) },
		ListenGroup: func(_ string, group netip.AddrPort) (net.PacketConn, error) {
			return w.host.ListenPacket(netip.AddrPortFrom(netip.Addr{}, group.Port()))
		},
	}
	return g
}

func (g *pmpGateway) serve() {
	defer close(g.done)
	buf := make([]byte, 100)
	for {
		n, from, err := g.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if n < 2 || buf[0] != 0 { // PCP: unsupported version
			if n > 0 {
				g.conn.WriteToUDPAddrPort([]byte{0, 0x80 | buf[1], 0, 1, 0, 0, 0, 1}, from)
			}
			continue
		}
		answer := []byte{0, 0x80 | buf[1], 0, 0, 0, 0, 0, 9}
		switch {
		case buf[1] == 0:
			answer = append(answer, g.external.AsSlice()...)
		case n == 12:
			port, life := binary.BigEndian.Uint16(buf[4:]), binary.BigEndian.Uint32(buf[8:])
			g.mapped[port] = life
			if life == 0 {
				g.deleted++
				delete(g.mapped, port)
			}
			answer = append(answer, buf[4], buf[5], buf[4], buf[5])
			answer = binary.BigEndian.AppendUint32(answer, life)
		default:
			continue
		}
		g.conn.WriteToUDPAddrPort(answer, from)
	}
}

// TestGatewayGrants checks that what the gateway grants is shown, compared with what servers see, and deleted.
func TestGatewayGrants(t *testing.T) {
	for _, c := range []struct {
		name     string
		typ      testnet.RouterType
		external string // "": the one that servers see
		double   string
		why      string
		usable   bool
	}{
		{"one NAT", testnet.PRC, "", No, "is the one that servers see", true},
		{"a carrier's NAT beyond it", testnet.CGNE, "100.64.0.9", Yes, "not one of the internet's", false},
		{"another address than servers see", testnet.PRC, "203.0.113.77", Yes, "but servers see", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, c.typ, testnet.SiteConfig{}, func(w *world) {
				w.serve(false, 2)
				external := c.external
				if external == "" {
					external = w.site.WAN()[0].String()
				}
				g := w.pmp(external)
				rep := w.run(5 * time.Second)
				if len(rep.Gateways) != 1 || rep.Gateways[0].Grant == nil {
					t.Fatalf("gateways %+v", rep.Gateways)
				}
				grant := rep.Gateways[0].Grant
				if grant.Protocol != "nat-pmp" || grant.External.Addr().String() != external || grant.Usable != c.usable || grant.Lifetime < 60 {
					t.Errorf("grant %+v", grant)
				}
				if f := rep.IPv4; f.DoubleNAT != c.double || !strings.Contains(f.DoubleNATWhy, c.why) {
					t.Errorf("double NAT %q: %s", f.DoubleNAT, f.DoubleNATWhy)
				}
				g.conn.Close()
				<-g.done
				if len(g.mapped) != 0 || g.deleted == 0 {
					t.Errorf("the gateway is left with %v", g.mapped)
				}
				if text := string(rep.AppendText(nil)); !strings.Contains(text, "eth0 grants "+grant.External.String()) || !strings.Contains(text, "pcp") {
					t.Errorf("text:\n%s", text)
				}
			})
		})
	}
}

// TestGatewayWithoutServices is what most hosts have: it must not take longer than the rest.
func TestGatewayWithoutServices(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		w.serve(false, 2)
		g := w.pmp("203.0.113.1")
		g.conn.Close()
		rep := w.run(5 * time.Second)
		if len(rep.Gateways) != 1 || rep.Gateways[0].Grant != nil || rep.IPv4.DoubleNAT != Unknown {
			t.Errorf("gateways %+v, double NAT %q", rep.Gateways, rep.IPv4.DoubleNAT)
		}
		for _, s := range rep.Gateways[0].Services {
			if s.Found || s.Err == "" {
				t.Errorf("%+v", s)
			}
		}
	})
}
