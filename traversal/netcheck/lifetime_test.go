package netcheck

import (
	"context"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// TestLifetime has NATs that forget after a known time: it must lie between the bounds that are found.
func TestLifetime(t *testing.T) {
	for _, c := range []struct {
		typ  testnet.RouterType
		life time.Duration
	}{
		{testnet.PRC, 20 * time.Second},
		{testnet.PRCR, 63 * time.Second},
		{testnet.FC, 30 * time.Second},
		{testnet.SymSeq, 120 * time.Second},
		{testnet.Sym, 170 * time.Second}, // netfilter's model: the life of a flow that has gone on for some time
		{testnet.CGNE, 300 * time.Second},
		{testnet.PubFW, 40 * time.Second},
	} {
		t.Run(string(c.typ), func(t *testing.T) {
			site := testnet.SiteConfig{Timeouts: udpTimeouts(c.life)}
			inWorld(t, c.typ, site, func(w *world) {
				w.serve(false, 2)
				w.cfg.Lifetime = true
				limit := c.life + 75*time.Second // the next time that is tried, once more
				if c.typ == testnet.PubFW {
					limit = time.Hour // its firewall has netfilter's times, whatever is asked for
				}
				rep := w.run(limit)
				l := rep.IPv4.Live
				if l == nil {
					t.Fatal("no lifetime")
				}
				if text := string(rep.AppendText(nil)); !strings.Contains(text, "an idle mapping lives from ") {
					t.Errorf("text:\n%s", text)
				}
				least, most := time.Duration(l.Least*1e9), time.Duration(l.Most*1e9)
				if l.Err != "" || c.typ != testnet.PubFW && (c.life < least || c.life > most) || most <= least {
					t.Errorf("from %v to %v (%s), want %v in between", least, most, l.Err, c.life)
				}
			})
		})
	}
}

func TestLifetimeBeyondTheLimit(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{Timeouts: udpTimeouts(time.Hour)}, func(w *world) {
		w.serve(false, 2)
		w.cfg.Lifetime, w.cfg.MaxLifetime = true, time.Minute
		if l := w.run(75 * time.Second).IPv4.Live; l == nil || l.Least != 60 || l.Most != 0 || l.Err != "" {
			t.Errorf("%+v", l)
		}
	})
}

func TestLifetimeInterrupted(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{Timeouts: udpTimeouts(time.Hour)}, func(w *world) {
		w.serve(false, 2)
		w.cfg.Lifetime = true
		ctx, cancel := context.WithTimeout(w.Context(), 40*time.Second)
		defer cancel()
		rep, err := Run(ctx, w.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if l := rep.IPv4.Live; l == nil || l.Least < 25 || l.Least > 40 || l.Most != 0 || l.Err != "interrupted" {
			t.Errorf("%+v", l)
		}
		if text := string(rep.AppendText(nil)); !strings.Contains(text, "or longer (interrupted)") {
			t.Errorf("text:\n%s", text)
		}
	})
}

// TestLifetimeNeedsTheServer has servers without RESPONSE-PORT, and none at all.
func TestLifetimeNeedsTheServer(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		w.serve(false, 2).redirect = false
		w.cfg.Lifetime = true
		if l := w.run(15 * time.Second).IPv4.Live; l == nil || l.Least != 0 || !strings.Contains(l.Err, "RESPONSE-PORT") {
			t.Errorf("%+v", l)
		}
	})
	inWorld(t, testnet.Pub, testnet.SiteConfig{}, func(w *world) {
		w.serve(false, 2)
		w.cfg.Lifetime = true
		if l := w.run(15 * time.Second).IPv4.Live; l == nil || !strings.Contains(l.Err, "no NAT") {
			t.Errorf("%+v", l)
		}
	})
	inWorld(t, testnet.Blocked, testnet.SiteConfig{}, func(w *world) {
		w.serve(false, 2)
		w.cfg.Lifetime = true
		if l := w.run(15 * time.Second).IPv4.Live; l != nil {
			t.Errorf("%+v", l)
		}
	})
}

func TestJudge(t *testing.T) {
	s := func(n int) time.Duration { return time.Duration(n) * time.Second }
	times := []time.Duration{s(5), s(10), s(15), s(20)}
	for _, c := range []struct {
		name        string
		alive       map[time.Duration]bool
		least, most float64
		over        bool
	}{
		{"nothing known", nil, 0, 0, false},
		{"one is gone", map[time.Duration]bool{s(5): true, s(10): false}, 5, 10, false},
		{"two are gone", map[time.Duration]bool{s(5): true, s(10): false, s(15): false}, 5, 10, true},
		{"one was lost", map[time.Duration]bool{s(5): true, s(10): false, s(15): true, s(20): false}, 15, 20, false},
		{"gone at once", map[time.Duration]bool{s(5): false, s(10): false}, 0, 5, true},
		{"never gone", map[time.Duration]bool{s(5): true, s(10): true, s(15): true, s(20): true}, 20, 0, false},
	} {
		l := judge(times, c.alive)
		if l.Least != c.least || l.Most != c.most || dead(times, c.alive) != c.over {
			t.Errorf("%s: %+v, over %v", c.name, l, dead(times, c.alive))
		}
	}
	if list := idleTimes(10 * time.Minute); len(list) > 40 || list[0] != s(5) || list[len(list)-1] != s(600) {
		t.Errorf("times %v", list)
	}
}
