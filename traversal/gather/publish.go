package gather

import (
	"errors"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// publish brings Local up to date, and tells if it is another one. What it asks others for, it asks without Gatherer.mu.
func (g *Gatherer) publish() {
	if g.update() {
		g.cfg.Changed()
	}
}

func (g *Gatherer) update() (changed bool) {
	g.publishing.Lock() // so that the newest is published last
	defer g.publishing.Unlock()
	f := facts{port: g.cfg.Port(), apart: g.cfg.WGPort != nil, filter: exchange.Filter{Mesh: g.cfg.Mesh(), Loopback: g.cfg.Loopback}}
	if f.apart {
		f.wgPort = g.cfg.WGPort()
	}
	g.mu.Lock()
	mapper, wanted := g.mapping.mapper, g.mapping.on
	g.mu.Unlock()
	settled := !wanted
	if mapper != nil {
		f.maps, settled = mapper.Mappings(), settled || closed(mapper.Gathered())
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	next := g.localLocked(&f, settled || !g.mapping.active)
	found, refused := f.candidates()
	for i := range found {
		next.Candidates = append(next.Candidates, found[i].Candidate)
		found[i].Since = now
		for _, was := range g.found {
			if was.Candidate == found[i].Candidate {
				found[i].Since = was.Since
			}
		}
	}
	g.counters.refused.Add(uint64(max(0, refused-g.refused)))
	g.found, g.refused = found, refused
	if g.local.equal(&next) {
		return false
	}
	g.local = next
	return true
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// localLocked completes the facts, and returns what there is to say beside the candidates.
func (g *Gatherer) localLocked(f *facts, mapped bool) (l Local) {
	f.hosts, f.static, f.own = g.hosts, g.static, g.ownLocked
	for _, s := range g.sources {
		for _, o := range s.seen {
			if !o.endpoint.IsValid() || o.checked.Before(g.gen.network) && !g.gen.settling {
				continue
			}
			x := sighting{o.endpoint, o.to.Addr(), s.name}
			if s.service != nil {
				f.service = append(f.service, x)
			} else {
				f.seen = append(f.seen, x)
			}
		}
	}
	l.Hints4, l.Hints6 = g.hintsLocked(4, f.port, g.local.Hints4), g.hintsLocked(6, f.port, g.local.Hints6)
	f.spread = [2]bool{dependent(l.Hints4), dependent(l.Hints6)}
	l.First = g.gen.first
	l.UDPBlocked = g.blockedLocked()
	l.Complete = g.gen.first && g.gen.finished && mapped && !g.studying
	return l
}

// hintsLocked are those of a family. While it settles, those from before are better than what a part of the answers would say.
func (g *Gatherer) hintsLocked(fam uint8, port uint16, before exchange.Hints) exchange.Hints {
	if g.gen.settling && before.Known {
		return before
	}
	h := hintsOf(g.observedLocked(fam), port, g.nearLocked)
	if x := g.families[index(fam)].studied; x.network == g.networkLocked(fam) {
		h = merge(h, x.hints)
	}
	return h
}

func dependent(h exchange.Hints) bool { return h.Known && h.Mapping.Least > nat.EndpointIndependent }

// blockedLocked reports whether UDP gets nowhere: servers whose addresses are known were asked on this network, and none has
// answered.
func (g *Gatherer) blockedLocked() bool {
	if g.gen.answered || !g.gen.finished {
		return false
	}
	for _, s := range g.sources {
		for _, o := range s.seen {
			if errors.Is(o.err, stun.ErrNoAnswer) && s.service == nil {
				return true
			}
		}
	}
	return false
}
