package stun

import (
	"net"
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/testnet"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// fakeSite is a site without sockets.
func fakeSite(first, second uint16, list ...netip.Addr) *site {
	g := &site{v6: list[0].Is6(), ports: [2]uint16{first, second}}
	g.addrs.Store(&list)
	return g
}

// bareServer is a server without sockets, for respond.
func bareServer(t testing.TB, cfg ServerConfig, sites ...*site) *Server {
	t.Helper()
	s, err := newServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.sites = sites
	return s
}

// serveTestnet starts a server on a host of a network in memory, on all of the host's addresses of a family.
func serveTestnet(t testing.TB, h *testnet.Host, v6 bool) *Server {
	t.Helper()
	var list []netip.Addr
	for _, a := range h.Addrs() {
		if a.Is6() == v6 {
			list = append(list, a)
		}
	}
	g := fakeSite(3478, 3479, list...)
	for i := range g.socks {
		for _, a := range list {
			c, err := h.ListenPacket(netip.AddrPortFrom(a, g.ports[i]))
			if err != nil {
				t.Fatal(err)
			}
			g.socks[i] = append(g.socks[i], &socket{conn: c, site: g, addr: a, port: i})
		}
	}
	s := bareServer(t, ServerConfig{}, g)
	serve(t, s)
	return s
}

// serve runs a server until the end of the test.
func serve(t testing.TB, s *Server) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// listenOn is a DiscoverConfig.Listen for a host of a network in memory.
func listenOn(h *testnet.Host) func() (net.PacketConn, error) {
	return func() (net.PacketConn, error) { return h.ListenPacket(netip.AddrPort{}) }
}

// build makes a request with another implementation's messages.
func build(t testing.TB, setters ...pion.Setter) []byte {
	t.Helper()
	m, err := pion.Build(append([]pion.Setter{pion.TransactionID, pion.BindingRequest}, setters...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

// attr is an attribute of any kind.
func attr(t pion.AttrType, value ...byte) pion.Setter {
	return pion.RawAttribute{Type: t, Value: value}
}

// decode reads a response with another implementation.
func decode(t testing.TB, b []byte) *pion.Message {
	t.Helper()
	m := &pion.Message{Raw: append([]byte(nil), b...)}
	if err := m.Decode(); err != nil {
		t.Fatalf("response %x: %v", b, err)
	}
	return m
}

// mappedOf is XOR-MAPPED-ADDRESS as another implementation reads it.
func mappedOf(t testing.TB, m *pion.Message) netip.AddrPort {
	t.Helper()
	var x pion.XORMappedAddress
	if err := x.GetFrom(m); err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	a, _ := netip.AddrFromSlice(x.IP)
	return netip.AddrPortFrom(a.Unmap(), uint16(x.Port))
}
