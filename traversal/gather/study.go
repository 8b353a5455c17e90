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
	studySockets = 12          // whose ports are compared
	studyDelay   = time.Second // the first checks of peers go first
	studyAgain   = time.Hour   // on the same network
	studyRetry   = 10 * time.Minute
	studyTimeout = 30 * time.Second
)

// studied is what fresh sockets have told of one family.
type studied struct {
	network string // where
	at      time.Time
	hints   exchange.Hints // not known if it failed
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
	done := make(chan struct{})
	s.done = done
	g.setStudying(slices.ContainsFunc(subjects, func(x subject) bool { return x.first }))
	go func() {
		defer close(done)
		g.study(ctx)
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
	servers []netip.AddrPort // those with another address first
	local   []netip.Addr
}

// subjects are the families that a study is due for.
func (g *Gatherer) subjects(now time.Time) (list []subject) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.eager || !g.gen.first || g.gen.settling {
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
		if !was.hints.Known {
			wait = studyRetry
		}
		x.first = was.network != x.network
		if len(x.servers) > 0 && (x.first || now.Sub(was.at) >= wait) {
			list = append(list, x)
		}
	}
	return list
}

// networkLocked tells networks apart, by this host's addresses and where it is seen from outside.
func (g *Gatherer) networkLocked(fam uint8) string {
	outer := netip.Addr{}
	if list := g.observedLocked(fam); len(list) > 0 {
		outer = list[0].Mapped.Addr()
	}
	return fmt.Sprint(g.hosts, outer)
}

func (g *Gatherer) study(ctx context.Context) {
	t := time.NewTimer(studyDelay)
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
		})
		cancel()
		if ctx.Err() != nil {
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
		g.families[index(x.family)].studied = is
		g.mu.Unlock()
		g.tell()
	}
}
