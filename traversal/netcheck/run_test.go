package netcheck

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// TestEveryRouterType says of each type of router what it is, and how the others are reached from behind it.
func TestEveryRouterType(t *testing.T) {
	const ei, ad, apd = "endpoint-independent", "address-dependent", "address-and-port-dependent"
	for _, c := range []struct {
		typ                testnet.RouterType
		mapping, filtering string
		kind               Kind
		traditional        bool
	}{
		{testnet.Pub, ei, ei, KindPublic, false},
		{testnet.PubFW, ei, apd, KindFirewall, false},
		{testnet.FC, ei, ei, KindFullCone, true},
		{testnet.FCR, ei, ei, KindFullCone, false},
		{testnet.ARC, ei, ad, KindAddress, true},
		{testnet.PRC, ei, apd, KindPort, true},
		{testnet.PRCR, ei, apd, KindPort, false},
		{testnet.ADM, ad, apd, KindRandom, false},
		{testnet.SymKeep, apd, apd, KindKeeping, false},
		{testnet.SymSeq, apd, apd, KindSequential, false},
		{testnet.Sym, apd, apd, KindRandom, false},
		{testnet.CGNE, ei, apd, KindPort, false},
		{testnet.CGNS, apd, apd, KindRandom, false},
		{testnet.Blocked, Unknown, Unknown, KindBlocked, false},
		{testnet.SymBlock, apd, apd, KindRandom, false},
		{testnet.SymPF, apd, apd, KindRandom, false},
	} {
		t.Run(string(c.typ), func(t *testing.T) {
			inWorld(t, c.typ, testnet.SiteConfig{}, func(w *world) {
				w.serve(false, 2)
				rep := w.run(4 * time.Second)
				f := rep.IPv4
				if f.Mapping != c.mapping || f.Filtering != c.filtering || f.Kind != c.kind || f.Traditional != c.traditional {
					t.Errorf("mapping %q, filtering %q, kind %q, traditional %v; want %q, %q, %q, %v",
						f.Mapping, f.Filtering, f.Kind, f.Traditional, c.mapping, c.filtering, c.kind, c.traditional)
				}
				if !f.Sure && c.kind != KindBlocked { // which one silent server may be the cause of
					t.Error("not sure, with two addresses to ask")
				}
				if rep.IPv6.Address || rep.IPv6.Kind != KindUnknown {
					t.Errorf("IPv6: %+v", rep.IPv6)
				}
				text := string(rep.AppendText(nil))
				if !strings.Contains(text, "so this is") || !strings.Contains(text, c.kind.String()) {
					t.Errorf("text:\n%s", text)
				}
			})
		})
	}
}

// TestOneServerOneAddress has the least that a mesh may have: what cannot be told is called so, and taken for what is usual.
func TestOneServerOneAddress(t *testing.T) {
	for _, c := range []struct {
		typ       testnet.RouterType
		mapping   string
		filtering string
		kind      Kind
		sure      bool
	}{
		{testnet.PRC, "endpoint-independent or address-dependent", "address-and-port-dependent", KindPort, false},
		{testnet.FC, "endpoint-independent or address-dependent", "endpoint-independent or address-dependent", KindAddress, false},
		{testnet.Sym, "address-and-port-dependent", "address-and-port-dependent", KindRandom, true},
		{testnet.SymSeq, "address-and-port-dependent", "address-and-port-dependent", KindSequential, true},
	} {
		t.Run(string(c.typ), func(t *testing.T) {
			inWorld(t, c.typ, testnet.SiteConfig{}, func(w *world) {
				w.serve(false, 1)
				rep := w.run(4 * time.Second)
				f := rep.IPv4
				if f.Mapping != c.mapping || f.Filtering != c.filtering || f.Kind != c.kind || f.Sure != c.sure {
					t.Errorf("%q, %q, %q, %v", f.Mapping, f.Filtering, f.Kind, f.Sure)
				}
				if len(rep.Notes) == 0 || !strings.Contains(rep.Notes[len(rep.Notes)-1], "two addresses") {
					t.Errorf("nobody is told what is missing: %q", rep.Notes)
				}
			})
		})
	}
}

func TestBothFamilies(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{IPv6: true}, func(w *world) {
		w.serve(false, 2)
		w.serve(true, 1)
		rep := w.run(5 * time.Second)
		if rep.IPv4.Kind != KindPort || rep.IPv6.Kind != KindFirewall || rep.IPv6.NAT != No || rep.IPv6.UDP != Yes {
			t.Errorf("IPv4 %q; IPv6 %q, NAT %q, UDP %q", rep.IPv4.Kind, rep.IPv6.Kind, rep.IPv6.NAT, rep.IPv6.UDP)
		}
		for _, o := range rep.IPv6.Outlook {
			if want := o.Peer == KindBlocked; (o.Result == ByRelay) != want && (o.Peer == KindFirewall || o.Peer == KindPublic) {
				t.Errorf("IPv6 with %s: %s", o.Peer, o.Result)
			}
		}
	})
}

func TestHairpin(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{Hairpin: true}, func(w *world) {
		w.serve(false, 2)
		if f := w.run(4 * time.Second).IPv4; f.Hairpin != Yes {
			t.Errorf("hairpin %q", f.Hairpin)
		}
	})
}

// TestSilentServers has one server that is down beside one that answers, and then none.
func TestSilentServers(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		w.serve(false, 2)
		w.cfg.STUN = append(w.cfg.STUN, "198.51.100.99:3478", "nowhere.example:3478", "senseless")
		rep := w.run(4 * time.Second)
		f := rep.IPv4
		if f.UDP != Yes || f.Kind != KindPort || len(f.Servers) != 2 || f.Servers[0].Err != "" || f.Servers[1].Err != "no answer" {
			t.Errorf("%q %q %+v", f.UDP, f.Kind, f.Servers)
		}
		if notes := strings.Join(rep.Notes, "\n"); !strings.Contains(notes, "nowhere.example:3478: the name does not resolve") || !strings.Contains(notes, "senseless: not of the form HOST:PORT") {
			t.Errorf("notes: %s", notes)
		}
	})
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		w.cfg.STUN = []string{"198.51.100.99:3478"}
		if f := w.run(4 * time.Second).IPv4; f.UDP != No || f.Kind != KindBlocked {
			t.Errorf("%q %q", f.UDP, f.Kind)
		}
	})
}

func TestNobodyToAsk(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		w.cfg.STUN = nil
		rep := w.run(time.Second)
		if rep.IPv4.UDP != Unknown || rep.IPv4.Kind != KindUnknown || len(rep.IPv4.Outlook) != 0 {
			t.Errorf("%+v", rep.IPv4)
		}
		if len(rep.Notes) != 2 || !strings.Contains(rep.Notes[0], "--stun") || !strings.Contains(rep.Notes[1], "--relay") {
			t.Errorf("notes: %q", rep.Notes)
		}
		if len(rep.Local) != 1 || rep.Local[0].Scope != "private" || rep.Local[0].Interface != "eth0" {
			t.Errorf("addresses: %+v", rep.Local)
		}
	})
}

// TestJSONHasNoNull holds for a report about nothing.
func TestJSONHasNoNull(t *testing.T) {
	inWorld(t, testnet.Blocked, testnet.SiteConfig{}, func(w *world) {
		w.cfg.STUN = nil
		b, err := json.Marshal(w.run(time.Second))
		if err != nil || strings.Contains(string(b), "null") {
			t.Errorf("%s, %v", b, err)
		}
		for _, name := range []string{"addresses", "ipv4", "ipv6", "gateways", "relays", "notes", "low_ports", "took_ms"} {
			if !strings.Contains(string(b), `"`+name+`":`) {
				t.Errorf("no %s in %s", name, b)
			}
		}
	})
}

func TestInterrupted(t *testing.T) {
	inWorld(t, testnet.Blocked, testnet.SiteConfig{}, func(w *world) {
		w.cfg.STUN = []string{"198.51.100.99:3478"}
		start := time.Now()
		ctx, cancel := context.WithTimeout(w.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := Run(ctx, w.cfg); err == nil {
			t.Error("no error")
		}
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}
