package portmap

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestLyingAnswers(t *testing.T) {
	set := func(at int, to ...byte) func(*fakeGateway) {
		return func(g *fakeGateway) {
			g.mangle = func(b []byte) []byte {
				if len(b) == pcpMapLen || len(b) == pmpMapLen { // answers about mappings
					copy(b[at:], to)
				}
				return b
			}
		}
	}
	for _, c := range []struct {
		name     string
		protocol Protocol
		change   func(*fakeGateway)
		check    func(Stats) bool
	}{
		{"PCP, another nonce", PCP, set(24, 1), func(s Stats) bool { return s.Mismatch == 3 }},
		{"PCP, another internal port", PCP, set(40, 0, 1), func(s Stats) bool { return s.Mismatch == 3 }},
		{"PCP, cut", PCP, func(g *fakeGateway) { g.mangle = func(b []byte) []byte { return b[:len(b)-2] } }, func(s Stats) bool { return s.Malformed == 3 }},
		{"PCP, a lifetime of 0", PCP, func(g *fakeGateway) {
			g.mangle = func(b []byte) []byte {
				binary.BigEndian.PutUint32(b[4:], 0)
				return b
			}
		}, func(s Stats) bool { return s.Created == 0 }},
		{"PCP, loopback", PCP, func(g *fakeGateway) { g.external = netip.MustParseAddr("127.0.0.1") }, func(s Stats) bool { return s.Refused == 1 }},
		{"PCP, no address", PCP, func(g *fakeGateway) { g.external = netip.MustParseAddr("0.0.0.0") }, func(s Stats) bool { return s.Refused == 1 }},
		{"NAT-PMP, no address", NATPMP, func(g *fakeGateway) { g.external = netip.MustParseAddr("0.0.0.0") }, func(s Stats) bool { return s.Refused == 1 }},
		{"NAT-PMP, another internal port", NATPMP, set(8, 0, 1), func(s Stats) bool { return s.Mismatch == 3 }},
		{"NAT-PMP, from another port", NATPMP, func(g *fakeGateway) { g.elsewhere = true }, func(s Stats) bool { return s.Answers == 0 }},
		{"NAT-PMP, rubbish", NATPMP, func(g *fakeGateway) { g.mangle = func([]byte) []byte { return []byte{0, 128} } }, func(s Stats) bool { return s.Malformed == 6 }}, // PCP is asked for too
		{"UPnP, loopback", UPnP, func(g *fakeGateway) { g.external = netip.MustParseAddr("127.0.0.1") }, func(s Stats) bool { return s.Refused == 1 }},
		{"UPnP, no address", UPnP, func(g *fakeGateway) { g.external = netip.Addr{} }, func(s Stats) bool { return s.Refused == 1 }},
		{"UPnP, a location that is none", UPnP, func(g *fakeGateway) { g.location = "http://router/" }, func(s Stats) bool { return s.Malformed > 0 && s.Requests == 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inHome(t, func(h *home) {
				h.gateway.with(func() { c.change(h.gateway) })
				h.run(4 * time.Second)
				if list, s := h.m.Mappings(), h.m.Stats(); len(list) != 0 || !c.check(s) {
					t.Errorf("%v, %+v", list, s)
				}
				if err := h.m.Close(h.Context()); err != nil {
					t.Error(err)
				}
			}, c.protocol)
		})
	}
}

func TestDoubleNATIsNamed(t *testing.T) {
	for _, p := range []Protocol{PCP, NATPMP, UPnP} {
		for _, a := range []string{"192.168.7.2", "100.64.3.4"} {
			inHome(t, func(h *home) {
				h.gateway.with(func() { h.gateway.external = netip.MustParseAddr(a) })
				h.run(time.Second)
				if x := h.one(); !x.DoubleNAT || x.External.Addr().String() != a {
					t.Errorf("%s: %+v", p, x)
				}
				if s := h.m.Status(); p != PCP && !s[0].DoubleNAT() {
					t.Errorf("%s: %+v", p, s)
				}
				h.close()
			}, p)
		}
	}
}

// A NAT between host and gateway: only PCP can tell, and NAT-PMP maps to the wrong place without knowing.
func TestAddressMismatchIsDoubleNAT(t *testing.T) {
	inHome(t, func(h *home) {
		h.gateway.with(func() { h.gateway.pcpCode = pcpAddressMismatch })
		h.run(time.Second)
		if x := h.one(); x.Protocol != NATPMP || !x.DoubleNAT {
			t.Errorf("%+v", x)
		}
		if r := h.m.Status(); !r[0].DoubleNAT() || !strings.Contains(r[0].Services[0].Err.Error(), "another NAT") {
			t.Errorf("%+v", r)
		}
		h.close()
	}, PCP, NATPMP)
}

func TestUPnPFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*fakeGateway)
		ok     func(h *home, x Mapping) bool
	}{
		{"718: another port", func(g *fakeGateway) {
			g.table[51820] = fakeEntry{internal: netip.MustParseAddrPort("192.168.1.99:1"), by: UPnP}
		}, func(h *home, x Mapping) bool { return x.External.Port() != 51820 && x.Lifetime == 2*time.Hour }},
		{"725: permanent", func(g *fakeGateway) { g.permanent = true }, func(h *home, x Mapping) bool {
			return x.Lifetime == 0 && time.Until(x.Renews) <= 25*time.Minute
		}},
		{"725 of version 2", func(g *fakeGateway) { g.permanent, g.version = true, 2 }, func(h *home, x Mapping) bool { return x.Lifetime == 0 }},
		{"402: permanent", func(g *fakeGateway) { g.faults["AddPortMapping"] = []int{402} }, func(h *home, x Mapping) bool { return x.Lifetime == 0 }},
		{"a version 2 that has only version 1", func(g *fakeGateway) { g.version, g.faults["AddAnyPortMapping"] = 2, []int{401} }, func(h *home, x Mapping) bool {
			return x.Lifetime == 2*time.Hour && h.gateway.count("AddPortMapping") == 1
		}},
		{"LOCATION on another host: the gateway is asked", func(g *fakeGateway) { g.location = "http://192.168.1.77:5000/root.xml" }, func(h *home, x Mapping) bool {
			return h.m.Stats().OtherHost > 0
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inHome(t, func(h *home) {
				h.gateway.with(func() { c.change(h.gateway) })
				h.run(time.Second)
				if x := h.one(); !c.ok(h, x) {
					t.Errorf("%+v", x)
				}
				before := h.one()
				time.Sleep(time.Hour)
				if x := h.one(); x.External != before.External || !x.Since.Equal(before.Since) {
					t.Errorf("renewed as %+v, was %+v", x, before)
				}
				h.gateway.with(func() {
					for p, e := range h.gateway.table {
						if e.internal.Port() == 1 {
							delete(h.gateway.table, p)
						}
					}
				})
				h.close()
			}, UPnP)
		})
	}
}

func TestUPnPRefusals(t *testing.T) {
	for _, code := range []int{501, 606} {
		inHome(t, func(h *home) {
			h.gateway.with(func() { h.gateway.faults["AddPortMapping"] = []int{code, code, code, code, code, code} })
			h.run(2 * time.Second) // as long as others might still be found
			s := h.m.Status()[0].Services[2]
			if len(h.m.Mappings()) != 0 || !s.Found || resultCode(s.Err) != code || h.gateway.count("AddPortMapping") != 1 {
				t.Errorf("%d: %+v, %d requests", code, s, h.gateway.count("AddPortMapping"))
			}
			time.Sleep(3 * time.Hour)
			h.want(UPnP, "44.128.0.5:51820") // somebody has changed the settings
			h.close()
		}, UPnP)
	}
}

// What is gone already needs no deletion, and a pinhole that cannot be renewed is made anew.
func TestUPnPAfterTheGatewayForgot(t *testing.T) {
	inHome(t, func(h *home) {
		h.run(time.Second)
		h.gateway.with(func() {
			clear(h.gateway.table)
			h.gateway.faults["DeletePortMapping"] = []int{upnpNoSuchMapping}
		})
		h.close()
	}, UPnP)
	inHome(t, func(h *home) {
		h.gateway.with(func() { h.gateway.firewall = true })
		h.run(2 * time.Second)
		h.gateway.with(func() { h.gateway.faults["UpdatePinhole"] = []int{501} })
		h.m.Refresh()
		time.Sleep(time.Second)
		if n := h.gateway.count("AddPinhole"); n != 2 {
			t.Errorf("%d pinholes were made", n)
		}
		h.close()
	}, UPnP, "v6")
}
