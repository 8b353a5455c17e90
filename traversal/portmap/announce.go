package portmap

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// announcePort is where gateways announce that they have started, or have another address (RFC 6886 section 3.2.1, RFC 6887
// section 14.1).
const announcePort = 5350

// announcement is what a gateway says of its own accord. It is only taken as a hint to ask.
type announcement struct {
	protocol Protocol
	epoch    uint32
	address  netip.Addr // NAT-PMP
	at       time.Time
}

// parseAnnouncement reads one of either protocol.
func parseAnnouncement(b []byte) (a announcement, ok bool) {
	if p, ok := parsePCP(b); ok && p.version == pcpVersion {
		return announcement{protocol: PCP, epoch: p.epoch}, p.opcode == pcpAnnounce && p.code == 0
	}
	p, ok := parsePMP(b)
	return announcement{protocol: NATPMP, epoch: p.epoch, address: p.address}, ok && p.version == pmpVersion && p.opcode == pmpAddress && p.code == 0
}

// listen hears announcements until ctx ends. Where that cannot be had, mappings are as good, but lost ones are noticed later.
func (s *site) listen(ctx context.Context) {
	gw := s.link.gw
	group := netip.AddrFrom4([4]byte{224, 0, 0, 1})
	if gw.Addr.Is6() {
		group = netip.MustParseAddr("ff02::1").WithZone(gw.Interface)
	}
	c, err := s.m.cfg.ListenGroup(gw.Interface, netip.AddrPortFrom(group, announcePort))
	if err != nil {
		s.log.Debug("no announcements are heard", slog.Any("err", err))
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	buf := make([]byte, maxDatagram)
	for failures := 0; failures < maxFailures; {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			failures++
			continue
		}
		failures = 0
		source, ok := from.(*net.UDPAddr)
		if !ok || source.Port != servicePort || !sameHost(source.AddrPort().Addr(), gw.Addr) {
			s.link.otherSource.Add(1)
			continue
		}
		a, ok := parseAnnouncement(buf[:n])
		if !ok {
			s.link.count(malformed)
			continue
		}
		a.at = time.Now()
		select {
		case s.heard <- a:
		default: // they come in tens
		}
	}
}

// sameHost compares without zones, which sockets of one interface need not tell.
func sameHost(a, b netip.Addr) bool { return a.Unmap().WithZone("") == b.WithZone("") }

// announced looks for news. The epochs that are kept stay as they are: anybody could have sent the announcement in the
// gateway's name, and the answers to what is asked now tell the truth.
func (s *site) announced(a announcement) {
	p := s.services[max(0, s.index(a.protocol))]
	news := p.service == nil
	if e := epochOf(p.service); e != nil {
		try := *e
		news = a.protocol == PCP && try.pcp(a.epoch, a.at) || a.protocol == NATPMP && try.pmp(a.epoch, a.at)
	}
	for _, l := range s.leases {
		news = news || a.address.IsValid() && l.by == NATPMP && l.held.external.Addr() != a.address
	}
	now := time.Now()
	if !news || now.Before(s.actedAt) { // what it asks for is going to be done
		return
	}
	after := max(0, s.actedAt.Add(actGap).Sub(now)) + time.Duration(rand.Int64N(int64(maxSpread)))
	s.actedAt = now.Add(after)
	s.link.announcements.Add(1)
	s.allDue(after)
	s.probeDue = s.probedAt.Add(probeGap)
}
