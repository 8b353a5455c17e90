package netcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/portmap"
)

// world is a network in memory, in virtual time: STUN servers on the internet, and a site with a host that is checked.
type world struct {
	*testing.T
	inet *testnet.Router
	stun []*stunHost
	site *testnet.Site
	host *testnet.Host
	cfg  Config
}

// inWorld runs fn with a host behind a router of the given type.
func inWorld(t *testing.T, typ testnet.RouterType, site testnet.SiteConfig, fn func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := testnet.New(testnet.Config{Seed: 1})
		w := &world{T: t, inet: n.Internet()}
		w.site = w.inet.Site("home", typ, site)
		w.host = w.site.Host("host", testnet.HostConfig{})
		w.cfg = Config{
			STUN:          []string{"stun.example:3478"},
			NoPortMapping: true,
			LowPorts:      func() bool { return false },
			Interface:     func(netip.Addr) string { return "eth0" },
			Host:          func() (hostnet.Snapshot, error) { return hostnet.Snapshot{Addrs: w.host.Addrs()}, nil },
			Listen: func(v6 bool) (net.PacketConn, error) {
				any := netip.IPv4Unspecified()
				if v6 {
					any = netip.IPv6Unspecified()
				}
				return w.host.ListenPacket(netip.AddrPortFrom(any, 0))
			},
			Resolve: func(ctx context.Context, host string) (list []netip.Addr, err error) {
				if host != "stun.example" {
					return nil, errors.New("no such host")
				}
				for _, s := range w.stun {
					list = append(list, s.addr(0, 0).Addr())
				}
				return list, nil
			},
			PortMap: portmap.Config{Gateways: func() ([]portmap.Gateway, error) { return nil, nil }},
		}
		fn(w)
		for _, s := range w.stun {
			s.close()
		}
	})
}

// run checks, and fails the test if that takes longer than limit.
func (w *world) run(limit time.Duration) *Report {
	w.Helper()
	start := time.Now()
	rep, err := Run(w.Context(), w.cfg)
	if err != nil {
		w.Fatal(err)
	}
	if took := time.Since(start); took > limit {
		w.Errorf("took %v, more than %v", took, limit)
	}
	return rep
}

// stunHost answers at one or two addresses, with two ports each, by the messages of another implementation: RFC 5780 with
// CHANGE-REQUEST and RESPONSE-PORT.
type stunHost struct {
	socks    [][2]*testnet.Socket // by address, port
	redirect bool
}

// serve starts a STUN server with so many addresses of a family.
func (w *world) serve(v6 bool, addresses int) *stunHost {
	w.Helper()
	list := []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("198.51.100.11")}
	if v6 {
		list = nil
	}
	cfg := testnet.HostConfig{}
	if len(list) >= addresses {
		cfg.Addrs = list[:addresses]
	}
	h := w.inet.Host("stun", cfg)
	s := &stunHost{redirect: true}
	for _, a := range h.Addrs() {
		if a.Is6() != v6 {
			continue
		}
		var row [2]*testnet.Socket
		for j, port := range []uint16{3478, 3479} {
			c, err := h.ListenPacket(netip.AddrPortFrom(a, port))
			if err != nil {
				w.Fatal(err)
			}
			row[j] = c
		}
		s.socks = append(s.socks, row)
	}
	for i := range s.socks {
		for j := range s.socks[i] {
			go s.serve(i, j)
		}
	}
	w.stun = append(w.stun, s)
	return s
}

func (s *stunHost) addr(i, j int) netip.AddrPort { return s.socks[i][j].LocalAddrPort() }

func (s *stunHost) close() {
	for _, row := range s.socks {
		row[0].Close()
		row[1].Close()
	}
}

func (s *stunHost) serve(i, j int) {
	const changeIP, changePort = 4, 2 // RFC 5780 section 7.2
	buf := make([]byte, 1500)
	for {
		n, from, err := s.socks[i][j].ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		m := &pion.Message{Raw: append([]byte(nil), buf[:n]...)}
		if m.Decode() != nil || m.Type != pion.BindingRequest {
			continue
		}
		a, p, to := i, j, from
		if v, err := m.Get(pion.AttrChangeRequest); err == nil && len(v) == 4 {
			if v[3]&changeIP != 0 && len(s.socks) == 1 {
				continue
			}
			if v[3]&changeIP != 0 {
				a = 1 - a
			}
			if v[3]&changePort != 0 {
				p = 1 - p
			}
		}
		if v, err := m.Get(pion.AttrResponsePort); err == nil && len(v) >= 2 {
			if !s.redirect {
				continue
			}
			to = netip.AddrPortFrom(from.Addr(), binary.BigEndian.Uint16(v))
		}
		set := []pion.Setter{
			pion.NewTransactionIDSetter(m.TransactionID), pion.BindingSuccess,
			&pion.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())},
		}
		if len(s.socks) == 2 {
			other := s.addr(1-i, 1-j)
			set = append(set, &pion.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
		}
		s.socks[a][p].WriteToUDPAddrPort(pion.MustBuild(set...).Raw, to)
	}
}

// udpTimeouts has mappings end after d.
func udpTimeouts(d time.Duration) nat.Timeouts { return nat.Timeouts{UDP: d, UDPOneWay: d} }
