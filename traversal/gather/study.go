package gather

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

const (
	studySockets = 12                     // whose ports are compared
	studyDelay   = time.Second            // the first checks of peers go first,
	studyHard    = 100 * time.Millisecond // after the servers have been asked, unless these lead nowhere
	studyAgain   = time.Hour              // on the same network
	studyRetry   = 10 * time.Minute
	studyTimeout = 30 * time.Second
)

// studied is what fresh sockets have told of one family.
type studied struct {
	network string // where
	at      time.Time
	hints   exchange.Hints // not known if it failed
	partial bool           // nothing is known of filtering yet
}

// study has stun.Discover look at what the NAT does, in the background. It belongs to the goroutine of Run.
type study struct {
	cancel context.CancelFunc
	done   chan struct{} // nil: none is under way
}

// manage begins a study if one is due.
func (s *study) manage(ctx context.Context, g *Gatherer) {
	select {
	case <-s.done:
		s.cancel()
		s.done = nil
	default:
	}
	if s.done != nil {
		return
	}
	subjects := g.subjects(time.Now())
	if len(subjects) == 0 {
		return
	}
	ctx, s.cancel = context.WithCancel(ctx)
	done, pause := make(chan struct{}), g.pauseFor(subjects)
	s.done = done
	g.setStudying(slices.ContainsFunc(subjects, func(x subject) bool { return x.first }))
	go func() {
		defer close(done)
		g.study(ctx, pause)
		g.setStudying(false)
	}()
}

func (g *Gatherer) setStudying(on bool) {
	g.mu.Lock()
	g.studying = on
	g.mu.Unlock()
	g.tell()
}

// stop ends the study that is under way, and waits for that.
func (s *study) stop() {
	if s.done != nil {
		s.cancel()
		<-s.done
		s.done = nil
	}
}

// subject is a family to be studied.
type subject struct {
	family  uint8
	network string
	first   bool             // on this network
	hard    bool             // it is known that mappings depend on the destination
	servers []netip.AddrPort // those with another address first
	local   []netip.Addr
}

// subjects are the families that a study is due for.
func (g *Gatherer) subjects(now time.Time) (list []subject) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.gen.first || g.gen.settling {
		return nil
	}
	for _, fam := range []uint8{4, 6} {
		x := subject{family: fam, local: g.hosts}
		for _, s := range g.sources {
			for _, o := range s.seen {
				if o.family != fam || !o.endpoint.IsValid() || o.checked.Before(g.gen.began) || s.service != nil {
					continue
				}
				if _, two := stun.Others(o.to, o.other); two {
					x.servers = slices.Insert(x.servers, 0, o.to)
				} else {
					x.servers = append(x.servers, o.to)
				}
			}
		}
		x.network = g.networkLocked(fam)
		was, wait := g.families[index(fam)].studied, studyAgain
		if !was.hints.Known || was.partial {
			wait = studyRetry
		}
		x.first = was.network != x.network
		x.hard = dependent([2]exchange.Hints{g.local.Hints4, g.local.Hints6}[index(fam)])
		if !g.eager && !(x.first && x.hard) { // where plain checks are not enough, peers are told how not, in time
			continue
		}
		if len(x.servers) > 0 && (x.first || now.Sub(was.at) >= wait) {
			list = append(list, x)
		}
	}
	return list
}

// networkLocked tells networks apart, by the address of this host and the one it is seen at from outside. Of IPv6 addresses their /64
// counts, in which hosts draw new ones now and then (RFC 8981).
func (g *Gatherer) networkLocked(fam uint8) string {
	bits := map[uint8]int{4: 32, 6: 64}[fam]
	var inner, outer netip.Prefix
	if i := slices.IndexFunc(g.hosts, func(a netip.Addr) bool { return familyOf(a) == fam }); i >= 0 {
		inner, _ = g.hosts[i].Prefix(bits)
	}
	if list := g.observedLocked(fam); len(list) > 0 {
		outer, _ = list[0].Mapped.Addr().Prefix(bits)
	}
	return fmt.Sprint(inner, outer)
}

// pauseFor is how long a study waits.
func (g *Gatherer) pauseFor(subjects []subject) time.Duration {
	if !slices.ContainsFunc(subjects, func(x subject) bool { return x.first && x.hard }) {
		return studyDelay
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Until(g.gen.began.Add(studyHard))
}

func (g *Gatherer) study(ctx context.Context, pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return
	}
	for _, x := range g.subjects(time.Now()) {
		g.counters.studies.Add(1)
		limited, cancel := context.WithTimeout(ctx, studyTimeout)
		r, err := stun.Discover(limited, stun.DiscoverConfig{
			Server: x.servers[0], More: x.servers[1:], Listen: g.cfg.Listen, Local: x.local, Sockets: studySockets,
			Learned: func(r stun.Report) { g.learned(x, r) },
		})
		cancel()
		if ctx.Err() != nil {
			g.unfinished(x)
			return
		}
		is := studied{network: x.network, at: time.Now()}
		if err == nil {
			is.hints = exchange.HintsOf(r)
			level := slog.LevelDebug
			if x.first {
				level = slog.LevelInfo
			}
			g.log.Log(ctx, level, "NAT behaviour learned", "server", r.Server, "nat", r.NAT, "mapping", r.Mapping, "filtering", r.Filtering,
				"ports_kept", r.Ports.Kept(), "step", r.Ports.Step)
		} else {
			g.log.Debug("NAT behaviour not learned", "server", x.servers[0], "err", err)
		}
		g.mu.Lock()
		if f := &g.families[index(x.family)]; err == nil || !f.studied.partial || f.studied.network != x.network {
			f.studied = is
		}
		g.mu.Unlock()
		g.tell()
	}
}

// learned takes in what is known of the ports before the rest, which takes seconds.
func (g *Gatherer) learned(x subject, r stun.Report) {
	g.mu.Lock()
	if f := &g.families[index(x.family)]; f.studied.network != x.network || !f.studied.hints.Known {
		f.studied = studied{network: x.network, at: time.Now(), hints: exchange.HintsOf(r), partial: true}
	}
	g.mu.Unlock()
	g.tell()
}

// unfinished has a study that was broken off made again.
func (g *Gatherer) unfinished(x subject) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := &g.families[index(x.family)]; f.studied.partial && f.studied.network == x.network {
		f.studied.at = time.Time{}
	}
}
