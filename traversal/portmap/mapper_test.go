package portmap

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

func TestEachProtocol(t *testing.T) {
	for _, c := range []struct {
		name   string
		has    []Protocol
		change func(*fakeGateway)
		want   Protocol
		limit  time.Duration
	}{
		{"all: PCP wins", []Protocol{PCP, NATPMP, UPnP}, nil, PCP, 100 * time.Millisecond},
		{"PCP and UPnP", []Protocol{PCP, UPnP}, nil, PCP, 100 * time.Millisecond},
		{"NAT-PMP and UPnP", []Protocol{NATPMP, UPnP}, nil, NATPMP, 100 * time.Millisecond},
		{"UPnP version 1", []Protocol{UPnP}, nil, UPnP, 500 * time.Millisecond},
		{"UPnP version 2", []Protocol{UPnP}, func(g *fakeGateway) { g.version = 2 }, UPnP, 500 * time.Millisecond},
		{"PCP refuses, so NAT-PMP", []Protocol{PCP, NATPMP, UPnP}, func(g *fakeGateway) { g.pcpCode = 2 }, NATPMP, 500 * time.Millisecond},
		{"PCP and NAT-PMP refuse", []Protocol{PCP, NATPMP, UPnP}, func(g *fakeGateway) { g.pcpCode, g.pmpCode = 8, 2 }, UPnP, 500 * time.Millisecond},
		{"two datagrams are lost", []Protocol{PCP}, func(g *fakeGateway) { g.drop = 2 }, PCP, time.Second},
		{"four are lost", []Protocol{UPnP}, func(g *fakeGateway) { g.drop = 4 }, UPnP, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			inHome(t, func(h *home) {
				if c.change != nil {
					h.gateway.with(func() { c.change(h.gateway) })
				}
				h.run(c.limit)
				h.want(c.want, "44.128.0.5:51820")
				if x := h.one(); x.DoubleNAT || x.Since.IsZero() || x.Lifetime != 2*time.Hour || time.Until(x.Renews) < 20*time.Minute || time.Until(x.Renews) > 75*time.Minute {
					t.Errorf("%+v", x)
				}
				h.close()
			}, c.has...)
		})
	}
}

func TestPinholes(t *testing.T) {
	for _, p := range []Protocol{PCP, UPnP} {
		t.Run(string(p), func(t *testing.T) {
			inHome(t, func(h *home) {
				h.gateway.with(func() { h.gateway.firewall = true })
				h.run(time.Second)
				h.want(p, netip.AddrPortFrom(h.host.Addr6(), 51820).String())
				time.Sleep(3 * time.Hour)
				if n := h.gateway.count("AddPinhole"); p == UPnP && (n != 1 || h.gateway.count("UpdatePinhole") < 3) {
					t.Errorf("%d pinholes were made and %d updated", n, h.gateway.count("UpdatePinhole"))
				}
				h.gateway.reboot()
				h.m.Refresh()
				time.Sleep(time.Second)
				h.want(p, netip.AddrPortFrom(h.host.Addr6(), 51820).String())
				if h.gateway.entries() == "" {
					t.Error("not made anew")
				}
				h.close()
			}, p, "v6")
		})
	}
}

func TestRenewalBeforeTheLifetimeEnds(t *testing.T) {
	for _, p := range []Protocol{PCP, NATPMP} {
		inHome(t, func(h *home) {
			h.gateway.with(func() { h.gateway.maxLife = 600 })
			h.run(time.Second)
			since := h.one().Since
			for range 100 {
				if x := h.one(); time.Until(x.Renews) > 375*time.Second {
					t.Fatalf("%s: renews in %v", p, time.Until(x.Renews))
				}
				time.Sleep(time.Minute)
			}
			n := h.gateway.count("pcp-map") + h.gateway.count("pmp-map")
			if n < 6000/375 || n > 6000/300+1 {
				t.Errorf("%s: %d requests in 100 minutes for a lifetime of 10", p, n)
			}
			if s := h.m.Stats(); s.Created != 1 || s.Renewed != uint64(n-1) || s.Lost != 0 || s.Reboots != 0 || !h.one().Since.Equal(since) {
				t.Errorf("%s: %+v", p, s)
			}
			h.close()
		}, p)
	}
}

// A gateway that has restarted is noticed by its epoch, at the next answer to anything; all mappings are made anew then.
func TestRebootSeenByEpoch(t *testing.T) {
	for _, p := range []Protocol{PCP, NATPMP} {
		inHome(t, func(h *home) {
			h.m.Map(51821)
			h.run(time.Second)
			time.Sleep(time.Minute)
			h.gateway.reboot()
			h.m.Refresh()
			time.Sleep(time.Second)
			if got := strings.Count(h.gateway.entries(), string(p)); got != 2 {
				t.Errorf("%s: the gateway has %q", p, h.gateway.entries())
			}
			if s := h.m.Stats(); s.Reboots != 1 {
				t.Errorf("%+v", s)
			}
			h.close()
		}, p)
	}
}

func TestRebootHeardByAnnouncement(t *testing.T) {
	for _, p := range []Protocol{PCP, NATPMP} {
		inHome(t, func(h *home) {
			to := netip.AddrPortFrom(h.host.Addr(), announcePort)
			h.run(time.Second)
			time.Sleep(time.Minute)
			before := h.gateway.count("pmp-map") + h.gateway.count("pcp-map")
			h.gateway.announce(to) // nothing has happened: nothing is done
			time.Sleep(time.Second)
			if n := h.gateway.count("pmp-map") + h.gateway.count("pcp-map"); p == NATPMP && n != before {
				t.Errorf("%s: a false alarm causes %d requests", p, n-before)
			}
			time.Sleep(time.Minute)
			h.gateway.reboot()
			h.gateway.with(func() { h.gateway.external = netip.MustParseAddr("44.128.0.6") })
			for range 10 {
				h.gateway.announce(to)
				time.Sleep(50 * time.Millisecond)
			}
			time.Sleep(time.Second)
			h.want(p, "44.128.0.6:51820")
			if n := h.gateway.count("pmp-map") + h.gateway.count("pcp-map"); n > before+2 {
				t.Errorf("%s: %d requests for ten announcements", p, n-before)
			}
			h.close()
		}, p)
	}
}

// Somebody else on the network may send announcements too.
func TestAnnouncementsOfOthers(t *testing.T) {
	inHome(t, func(h *home) {
		h.run(time.Second)
		stranger := h.net.Host("stranger", testnet.HostConfig{})
		c, err := stranger.ListenPacket(netip.AddrPortFrom(netip.Addr{}, servicePort))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		before := h.gateway.count("pmp-map")
		for range 100 {
			c.WriteToUDPAddrPort(unhex(t, `00 80 0000 00000000 01020304`), netip.AddrPortFrom(h.host.Addr(), announcePort))
			time.Sleep(10 * time.Millisecond)
		}
		if s := h.m.Stats(); h.gateway.count("pmp-map") != before || s.OtherSource != 100 || s.Announcements != 0 {
			t.Errorf("%d requests, %+v", h.gateway.count("pmp-map")-before, s)
		}
		h.close()
	}, NATPMP)
}

func TestExternalAddressChanges(t *testing.T) {
	for _, p := range []Protocol{PCP, NATPMP, UPnP} {
		inHome(t, func(h *home) {
			h.run(time.Second)
			changes := h.changes.Load()
			h.gateway.with(func() { h.gateway.external = netip.MustParseAddr("44.128.0.77") })
			time.Sleep(90 * time.Minute)
			h.want(p, "44.128.0.77:51820")
			if h.changes.Load() == changes {
				t.Errorf("%s: nobody was told", p)
			}
			h.close()
		}, p)
	}
}

// Where nothing answers, little is sent, and ever less.
func TestSilenceIsAnsweredByQuiet(t *testing.T) {
	for _, silent := range []bool{true, false} { // with and without ICMP errors
		inHome(t, func(h *home) {
			h.net.Self().SetSilent(silent)
			h.run(3 * time.Second)
			if n := h.m.Stats().Sent; n > 18 {
				t.Errorf("%d datagrams at first", n)
			}
			time.Sleep(24 * time.Hour)
			if n := h.m.Stats().Sent; n > 18*(24*4+6) {
				t.Errorf("%d datagrams in a day", n)
			}
			if s := h.m.Status()[0]; s.Services[0].Found || s.Services[0].Err == nil || !errors.Is(s.Services[2].Err, ErrNoAnswer) {
				t.Errorf("%+v", s)
			}
			for range 10_000 {
				h.m.Refresh()
			}
			before := h.m.Stats().Sent
			time.Sleep(4 * time.Second)
			if n := h.m.Stats().Sent - before; n > 18 {
				t.Errorf("%d datagrams after many refreshs", n)
			}
			h.close()
		})
	}
}

func TestMappingThatRunsOut(t *testing.T) {
	inHome(t, func(h *home) {
		h.gateway.with(func() { h.gateway.maxLife = 600 })
		h.run(time.Second)
		h.gateway.with(func() { h.gateway.drop = 1 << 30 })
		time.Sleep(590 * time.Second)
		h.want(PCP, "44.128.0.5:51820")
		time.Sleep(20 * time.Second)
		if list := h.m.Mappings(); len(list) != 0 || h.m.Stats().Lost != 1 {
			t.Errorf("%v, %+v", list, h.m.Stats())
		}
		h.gateway.with(func() { h.gateway.drop = 0 })
		time.Sleep(20 * time.Minute)
		h.want(PCP, "44.128.0.5:51820")
		h.close()
	}, PCP)
}

func TestPortsComeAndGo(t *testing.T) {
	inHome(t, func(h *home) {
		h.run(time.Second)
		h.m.Map(4000)
		synctest.Wait()
		time.Sleep(time.Second)
		if list := h.m.Mappings(); len(list) != 2 || list[0].Internal.Port() != 4000 {
			t.Errorf("%+v", list)
		}
		h.m.Unmap(51820)
		time.Sleep(time.Second)
		if got := h.gateway.entries(); got != "pcp 4000>"+netip.AddrPortFrom(h.host.Addr(), 4000).String() {
			t.Errorf("the gateway has %s", got)
		}
		if h.m.Map(0) {
			t.Error("port 0 is taken")
		}
		for port := range uint16(maxWanted) {
			h.m.Map(5000 + port)
		}
		if h.m.Map(6000) {
			t.Error("more ports than allowed")
		}
		h.close()
	}, PCP)
}

// The host moves to another network and back.
func TestGatewaysComeAndGo(t *testing.T) {
	inHome(t, func(h *home) {
		here := h.list
		h.run(time.Second)
		h.gateway.with(func() { h.list = nil })
		h.m.Refresh()
		synctest.Wait()
		if list := h.m.Mappings(); len(list) != 0 {
			t.Errorf("away: %+v", list)
		}
		h.gateway.with(func() { h.list = here })
		time.Sleep(gatewayPoll + time.Second)
		h.want(PCP, "44.128.0.5:51820")
		h.close()
	}, PCP)
}

// A program that was killed gets its mapping back, by the same nonce; a stranger's does not, and takes the next protocol.
func TestRestartWithTheSameSecret(t *testing.T) {
	inHome(t, func(h *home) {
		ctx, kill := context.WithCancel(h.Context())
		go h.m.Run(ctx)
		<-h.m.Gathered()
		kill()
		synctest.Wait()
		h.m = h.mapper()
		h.m.Map(51820)
		ctx, kill = context.WithCancel(h.Context())
		go h.m.Run(ctx)
		<-h.m.Gathered()
		h.want(PCP, "44.128.0.5:51820")
		kill()
		synctest.Wait()
		other := h.mapper()
		other.secret = []byte("another")
		other.Map(51820)
		h.m = other
		h.run(time.Second)
		if x := h.one(); x.Protocol != NATPMP {
			t.Errorf("%+v", x)
		}
		h.m.Close(h.Context())
	}, PCP, NATPMP)
}

func TestProbe(t *testing.T) {
	inHome(t, func(h *home) {
		reports, err := h.m.Probe(h.Context())
		if err != nil || len(reports) != 1 {
			t.Fatalf("%+v %v", reports, err)
		}
		s := reports[0].Services
		if !s[0].Found || !s[1].Found || !s[2].Found || s[1].External != wan || s[2].External != wan || s[2].Detail != "Maker Model & Co 7 (IGD 1)" {
			t.Errorf("%+v", s)
		}
		if got := h.gateway.entries(); got != "" {
			t.Errorf("a probe maps %s", got)
		}
	}, PCP, NATPMP, UPnP)
	inHome(t, func(h *home) {
		h.m.cfg.Gateways = func() ([]Gateway, error) { return nil, ErrGatewayUnknown }
		if _, err := h.m.Probe(h.Context()); !errors.Is(err, ErrGatewayUnknown) {
			t.Error(err)
		}
		h.run(time.Second)
		h.close()
	})
}

func TestCloseDoesNotHang(t *testing.T) {
	inHome(t, func(h *home) {
		h.run(time.Second)
		h.gateway.with(func() { h.gateway.drop = 1 << 30 })
		ctx, cancel := context.WithTimeout(h.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := h.m.Close(ctx); err == nil {
			t.Error("no error")
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("closing took %v", took)
		}
	}, PCP)
}
