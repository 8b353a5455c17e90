package portmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Report says what a gateway offers.
type Report struct {
	Gateway  Gateway
	Services []Service // one per protocol that the gateway's family has, in the order of preference
}

// Service says what is known of one protocol at a gateway.
type Service struct {
	Protocol Protocol
	Asked    bool          // it was, and Found is the outcome
	Found    bool          // somebody answered who speaks the protocol, be it with a refusal
	Err      error         // why it cannot be used, or was of no use the last time
	External netip.Addr    // the gateway's external address as NAT-PMP and UPnP tell it; the zero Addr if not
	Detail   string        // for people: model and version (UPnP)
	RTT      time.Duration // until it was found
}

// DoubleNAT reports whether there is another NAT beyond the gateway, or between it and this host, as far as the services tell.
func (r Report) DoubleNAT() bool {
	for _, s := range r.Services {
		if resultCodeOf(s.Err, PCP) == pcpAddressMismatch || s.External.IsValid() && doubleNAT(s.External) {
			return true
		}
	}
	return false
}

func resultCodeOf(err error, p Protocol) int {
	if r := (*ResultError)(nil); errors.As(err, &r) && r.Protocol == p {
		return r.Code
	}
	return 0
}

// Probe asks every gateway for every protocol, without making a mapping, and returns what there is after at most some 10 s.
// It works beside Run and without.
func (m *Mapper) Probe(ctx context.Context) ([]Report, error) {
	gateways, err := m.cfg.Gateways()
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	var work sync.WaitGroup
	var reports []Report
	for _, g := range usable(gateways) {
		reports = append(reports, newReport(g))
	}
	for _, r := range reports {
		l := &link{gw: r.Gateway, cfg: &m.cfg, counters: &m.counters}
		for i := range r.Services {
			work.Go(func() { r.Services[i] = l.probe(ctx, r.Services[i].Protocol).Service })
		}
	}
	work.Wait()
	return reports, ctx.Err()
}

func newReport(g Gateway) Report {
	r := Report{Gateway: g}
	for _, p := range protocols(g.Addr) {
		r.Services = append(r.Services, Service{Protocol: p})
	}
	return r
}

// protocols are those of a family, in the order of preference.
func protocols(gw netip.Addr) []Protocol {
	if gw.Is6() {
		return []Protocol{PCP, UPnP}
	}
	return []Protocol{PCP, NATPMP, UPnP}
}

// probed is the outcome of asking for one protocol.
type probed struct {
	Service
	service service // nil if it cannot be used
	epoch   epoch   // of PCP and NAT-PMP
}

// probe asks for one protocol.
func (l *link) probe(ctx context.Context, p Protocol) (r probed) {
	start := time.Now()
	r.Protocol, r.Asked = p, true
	e := new(epoch)
	switch p {
	case PCP:
		s := &pcpService{l, e}
		r.Err = s.probe(ctx)
		if r.Err == nil {
			r.service = s
		}
	case NATPMP:
		s := &pmpService{l, e}
		r.External, _, r.Err = s.address(ctx)
		if r.Err == nil && !plausible(r.External, l.gw.Local) {
			r.Err = fmt.Errorf("%w: %v", ErrBadAddress, r.External)
			r.External = netip.Addr{}
		}
		// One without an address now may have one soon.
		if r.Err == nil || errors.Is(r.Err, ErrBadAddress) || resultCode(r.Err) == pmpNetworkFailure {
			r.service, r.Found = s, true
		}
	case UPnP:
		s, external, err := l.findUPnP(ctx)
		r.Err = err
		if s != nil {
			r.service, r.Found, r.Detail = s, true, s.detail()
			if err == nil {
				r.External = external
			}
		}
	}
	r.epoch = *e
	r.Found = r.Found || r.Err == nil || resultCode(r.Err) != 0 && !errors.Is(r.Err, ErrUnsupported)
	if r.Found {
		r.RTT = time.Since(start)
	}
	return r
}

// detail says what a gateway is, for people.
func (s *upnpService) detail() string {
	if s.device.version == "" {
		return s.device.model
	}
	return fmt.Sprintf("%s (IGD %s)", s.device.model, s.device.version)
}
