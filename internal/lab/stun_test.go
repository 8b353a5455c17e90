//go:build linux

package lab_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
)

// TestSTUNPrograms asks a relay's STUN server with programs of others, from behind a router.
func TestSTUNPrograms(t *testing.T) {
	t.Parallel()
	lab.Need(t, "stun", "turnutils_stunclient", "turnutils_natdiscovery")
	productOnly(t, "stock WireGuard has no STUN server")
	w := newRelayWorld(t)
	w.v1.StartRelay(t, w.relayConf(relay1, "[STUN]\nListen = 198.18.3.2:3478\nListen = 198.18.3.3:3478\n"))

	t.Run("turnutils_stunclient", func(t *testing.T) {
		// It goes on to ask for answers from the other address, which the router keeps out, and waits for them for ever.
		out, _ := w.a.Exec("", "timeout", "2", "turnutils_stunclient", relay1)
		if !strings.Contains(out, "198.18.1.2:") {
			t.Errorf("the reflexive address is not the router's:\n%s", out)
		}
	})
	t.Run("turnutils_natdiscovery", func(t *testing.T) {
		// nftables' masquerade maps per endpoint while keeping the port, which looks endpoint-independent, and its connection
		// tracking lets nobody in who was not asked.
		out, _ := w.a.Exec("", "timeout", "30", "turnutils_natdiscovery", "-m", "-f", "-L", "192.168.1.2", relay1)
		if !strings.Contains(out, "NAT with Endpoint Independent Mapping!") || !strings.Contains(out, "NAT with Address and Port Dependent Filtering!") {
			t.Errorf("discovery:\n%s", out)
		}
		out, _ = w.i.Exec("", "timeout", "30", "turnutils_natdiscovery", "-m", "-f", "-L", "198.18.3.1", relay1)
		if !strings.Contains(out, "Endpoint Independent Filtering!") {
			t.Errorf("discovery without a router:\n%s", out)
		}
	})
	t.Run("stun", func(t *testing.T) {
		out, _ := w.a.Exec("", "timeout", "30", "stun", relay1, "-v")
		if !strings.Contains(out, "Independent Mapping, Port Dependent Filter") {
			t.Errorf("stun:\n%s", out)
		}
	})
}

var reflexive = regexp.MustCompile(`reflexive addr: (\S+)`)

// TestWGSTUN has a stock WireGuard client learn, by a STUN client inside its tunnel, where the tunnel comes from, and looks
// for anything else that the other end would answer.
func TestWGSTUN(t *testing.T) {
	t.Parallel()
	lab.Need(t, "turnutils_stunclient", "wg", "ping")
	productOnly(t, "stock WireGuard has no WG-STUN")
	w := newRelayWorld(t)
	client := w.Key()
	conf := "[WGSTUN]\nListen = :3479\nClient = " + client.Public().String() + " 100.64.9.9\n"
	relay := w.v1.StartRelay(t, w.relayConf(relay1, conf))

	lines := clientLines(t, relay, "WGSTUN")
	m := regexp.MustCompile(`PublicKey\s*=\s*(\S+)`).FindStringSubmatch(lines)
	if m == nil {
		t.Fatalf("no public key:\n%s", lines)
	}
	key, err := wgkey.ParsePublic(m[1])
	if err != nil {
		t.Fatal(err)
	}
	const port = 41414
	inner := innerAddress(t, relay, client.Public())
	// The router changes ports, so that nobody could guess the answer.
	w.ra.Nft(`table ip shift {
		chain post {
			type nat hook postrouting priority 90;
			oifname "i" udp sport 41414 masquerade to :50505
		}
	}`)
	tunnel := w.a.Stock(t, lab.Tunnel{
		Key: client, Addrs: []string{"100.64.9.9/32", inner + "/128"}, Port: port,
		Peers: []lab.TunnelPeer{{Key: key, AllowedIPs: "100.64.0.4/32, fd74:656c:696f::4/128, 100.64.0.5/32, fd74:656c:696f::5/128", Endpoint: relay1 + ":3479"}},
	})
	for _, server := range []string{"100.64.0.4", "fd74:656c:696f::4"} {
		t.Run("the outer endpoint by "+server, func(t *testing.T) {
			out, _ := w.a.Exec("", "turnutils_stunclient", server)
			if got := reflexive.FindStringSubmatch(out); got == nil || got[1] != "198.18.1.2:50505" {
				t.Errorf("want 198.18.1.2:50505:\n%s", out)
			}
			w.a.Run(t, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", server)
		})
	}
	t.Run("a new mapping is seen at the next request", func(t *testing.T) {
		w.a.Run(t, "wg", "set", tunnel.Dev, "listen-port", "42424") // the router keeps this one
		out, _ := w.a.Exec("", "turnutils_stunclient", "100.64.0.4")
		if got := reflexive.FindStringSubmatch(out); got == nil || got[1] != "198.18.1.2:42424" {
			t.Errorf("want 198.18.1.2:42424:\n%s", out)
		}
	})
	t.Run("nothing else answers", func(t *testing.T) { scan(t, w.a, tunnel, [2]string{"100.64.9.9", inner}) })
}

// innerAddress reads a client's address inside the tunnel from what the relay tells stock clients.
func innerAddress(t *testing.T, relay *lab.Relay, key wgkey.Public) string {
	t.Helper()
	out := relay.MustCommand(t, "config", "--for", key.String())
	m := regexp.MustCompile(`fd74:656c:696f:1:[0-9a-f:]+`).FindString(out)
	if m == "" {
		t.Fatalf("no inner address:\n%s", out)
	}
	return m
}

// scan sends to every TCP and UDP port of the server's addresses and of others that are routed into the tunnel, and counts
// what comes back besides STUN and echo replies.
func scan(t *testing.T, from *lab.Node, tunnel *lab.Stock, src [2]string) {
	t.Helper()
	from.Nft(fmt.Sprintf(`table inet scan {
		chain in {
			type filter hook prerouting priority -300;
			iifname %q udp sport 3478 return
			iifname %[1]q icmp type echo-reply return
			iifname %[1]q icmpv6 type echo-reply return
			iifname %[1]q counter comment "stray"
		}
	}`, tunnel.Dev))
	tap := from.Tap(t, tunnel.Dev)
	sent := 0
	for _, f := range families {
		for _, dst := range [][2]string{{"100.64.0.4", "fd74:656c:696f::4"}, {"100.64.0.5", "fd74:656c:696f::5"}} {
			p := probe{src: netip.MustParseAddr(src[f.i]), dst: netip.MustParseAddr(dst[f.i]), sport: 4444, payload: []byte("hello, who is there?")}
			for port := range 65536 {
				p.dport = uint16(port)
				for _, p.proto = range []string{"tcp", "udp"} {
					if tap.Send(p.bytes()) == nil {
						sent++
					}
				}
				if port%128 == 0 {
					time.Sleep(time.Millisecond) // the tunnel's queues are short
				}
			}
		}
	}
	time.Sleep(time.Second) // for answers that should not come
	// What was sent has to have arrived, or silence proves nothing.
	from.Run(t, "ping", "-n", "-c", "1", "-W", "2", "100.64.0.4")
	out := from.Run(t, "nft", "list", "table", "inet", "scan")
	if m := regexp.MustCompile(`counter packets (\d+) `).FindStringSubmatch(out); m == nil || m[1] != "0" {
		t.Errorf("something answered:\n%s", out)
	}
	if want := 2 * 2 * 2 * 65536; sent < want*9/10 {
		t.Errorf("%d of %d probes sent", sent, want)
	}
	t.Logf("%d probes", sent)
}
