package portmap

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// home is a network in memory with a fake gateway and a host behind it, in virtual time.
type home struct {
	*testing.T
	net     *testnet.Gateway
	host    *testnet.Host
	gateway *fakeGateway
	list    []Gateway // guarded by the fake gateway's lock once a Mapper runs
	m       *Mapper
	changes atomic.Int32
}

var wan = netip.MustParseAddr("44.128.0.5")

// inHome runs f in virtual time, with a Mapper that wants port 51820 and is not yet running.
func inHome(t *testing.T, f func(h *home), protocols ...Protocol) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := testnet.New(testnet.Config{Seed: 1})
		gw := n.Internet().Gateway("home", testnet.GatewayConfig{IPv6: true, NAT: &testnet.NATConfig{}})
		h := &home{T: t, net: gw, host: gw.Host("host", testnet.HostConfig{})}
		self := gw.Self()
		h.gateway = &fakeGateway{
			addr: gw.Addr(false), external: wan,
			listen: func(at netip.AddrPort) (net.PacketConn, error) { return self.ListenPacket(at) },
			accept: func(at netip.AddrPort) (net.Listener, error) { return self.Listen(at) },
		}
		if slices.Contains(protocols, "v6") {
			h.gateway.addr = gw.Addr(true)
		}
		h.gateway.serve(t, protocols...)
		defer h.gateway.stop()
		h.list = []Gateway{{Addr: h.gateway.addr, Local: h.host.Addr(), Interface: "eth0"}}
		if h.gateway.addr.Is6() {
			h.list[0].Local = h.host.Addr6()
		}
		h.m = h.mapper()
		h.m.Map(51820)
		f(h)
	})
}

func (h *home) mapper() *Mapper {
	return New(Config{
		Secret: []byte("x"),
		Gateways: func() (list []Gateway, _ error) {
			h.gateway.with(func() { list = h.list })
			return list, nil
		},
		Changed: func() { h.changes.Add(1) },
		Dial: func(ctx context.Context, network string, _ netip.Addr, remote netip.AddrPort) (net.Conn, error) {
			return h.host.Dial(ctx, network, remote.String())
		},
		ListenPacket: func(local netip.AddrPort) (net.PacketConn, error) { return h.host.ListenPacket(local) },
		ListenGroup: func(_ string, group netip.AddrPort) (net.PacketConn, error) {
			return h.host.ListenPacket(netip.AddrPortFrom(netip.Addr{}, group.Port()))
		},
	})
}

// run starts the Mapper and waits until it has gathered, at most for limit.
func (h *home) run(limit time.Duration) {
	h.Helper()
	go h.m.Run(h.Context())
	start := time.Now()
	<-h.m.Gathered()
	if took := time.Since(start); took > limit {
		h.Errorf("gathering took %v, more than %v", took, limit)
	}
}

// close ends the Mapper, and the gateway must have nothing left.
func (h *home) close() {
	h.Helper()
	if err := h.m.Close(h.Context()); err != nil {
		h.Error(err)
	}
	if left := h.gateway.entries(); left != "" {
		h.Errorf("after Close the gateway has %s", left)
	}
	if list := h.m.Mappings(); len(list) != 0 {
		h.Errorf("after Close there are %v", list)
	}
}

// one returns the mapping, which must be the only one.
func (h *home) one() Mapping {
	h.Helper()
	list := h.m.Mappings()
	if len(list) != 1 {
		h.Fatalf("mappings: %+v, status %+v", list, h.m.Status())
	}
	return list[0]
}

func (h *home) want(p Protocol, external string) {
	h.Helper()
	x := h.one()
	if x.Protocol != p || x.External.String() != external || x.Internal != netip.AddrPortFrom(h.list[0].Local, 51820) {
		h.Errorf("%+v, want %s %s", x, p, external)
	}
}
