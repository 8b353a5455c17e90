//go:build linux && !race

package stun

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// The race detector makes sync.Pool forget at random, hence the build tag.

func TestAnswerDoesNotAllocate(t *testing.T) {
	dst := make([]byte, 0, MaxAnswerLen)
	for name, req := range benchRequests(t) {
		for _, from := range []netip.AddrPort{client4, client6} {
			if n := testing.AllocsPerRun(1000, func() {
				if _, ok := Answer(dst, req, from); !ok {
					t.Fatal("no answer")
				}
			}); n != 0 {
				t.Errorf("%s from %v: %v allocations", name, from, n)
			}
		}
	}
}

func TestRespondDoesNotAllocate(t *testing.T) {
	g := fakeSite(3478, 3479, fourAddrs...)
	s := bareServer(t, ServerConfig{Rate: 1e9, DiscoveryRate: 1e9, TotalRate: 1e9}, g)
	dst := make([]byte, 0, maxMessage)
	now := int64(0)
	reqs := benchRequests(t)
	reqs["garbage"] = []byte("this is not a message of STUN's")
	for name, req := range reqs {
		if n := testing.AllocsPerRun(1000, func() {
			now += 1000
			s.respond(dst, req, place{g, fourAddrs[0], 0}, client4, now)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestServingDoesNotAllocate: from the system call that reads to the one that writes.
func TestServingDoesNotAllocate(t *testing.T) {
	for name, cfg := range map[string]ServerConfig{
		"addresses": {Addrs: []netip.AddrPort{ap("127.0.0.1:0"), ap("127.0.0.2:0")}},
		"wildcard":  {Addrs: []netip.AddrPort{ap("0.0.0.0:0")}},
	} {
		cfg.Rate, cfg.DiscoveryRate = 1e9, 1e9
		s := listenAndServe(t, cfg)
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{127, 0, 0, 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		to := withPort("127.0.0.1", s.Addrs()[0])
		buf := make([]byte, maxMessage)
		for kind, req := range benchRequests(t) {
			round := func() {
				if _, err := c.WriteToUDPAddrPort(req, to); err != nil {
					t.Fatal(err)
				}
				if _, _, err := c.ReadFromUDPAddrPort(buf); err != nil {
					t.Fatal(err)
				}
			}
			if n := testing.AllocsPerRun(500, round); n != 0 {
				t.Errorf("%s, %s: %v allocations", name, kind, n)
			}
		}
	}
}
