package portmap

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// pcpService is PCP at a gateway.
type pcpService struct {
	*link
	epoch *epoch
}

// probe asks whether there is a PCP server.
func (s *pcpService) probe(ctx context.Context) error {
	request := appendPCPHeader(nil, pcpAnnounce, 0, s.gw.Local)
	var a pcpAnswer
	err := s.ask(ctx, request, func(b []byte) (v verdict) {
		a, v = acceptPCP(b, func(a *pcpAnswer) bool { return a.version != pcpVersion || a.opcode == pcpAnnounce })
		return v
	})
	if err != nil {
		return err
	}
	if err := a.err(); err != nil && a.code != pcpUnsupportedOpcode { // a server without ANNOUNCE is a server
		return err
	}
	s.epoch.pcp(a.epoch, time.Now())
	return nil
}

// acceptPCP reads a response that wanted says is the right one.
func acceptPCP(b []byte, wanted func(*pcpAnswer) bool) (a pcpAnswer, v verdict) {
	a, ok := parsePCP(b)
	switch {
	case !ok:
		return a, malformed
	case !wanted(&a):
		return a, mismatch
	}
	return a, taken
}

// err is the answer's refusal, or nil.
func (a *pcpAnswer) err() error {
	if a.version != pcpVersion {
		return &ResultError{Protocol: PCP, Code: pcpUnsupportedVersion}
	}
	if a.code != 0 {
		return &ResultError{Protocol: PCP, Code: a.code, retry: a.lifetime}
	}
	return nil
}

func (s *pcpService) add(ctx context.Context, l *lease) (grant, error) {
	request := pcpMapRequest{client: s.gw.Local, nonce: l.nonce, internal: l.port, external: l.suggestion(), lifetime: s.cfg.Lifetime}
	a, rebooted, err := s.request(ctx, &request)
	if resultCode(err) == pcpCannotProvide && request.external.IsValid() {
		request.external = netip.AddrPort{} // the one that was suggested is another's by now
		a, rebooted, err = s.request(ctx, &request)
	}
	if err != nil {
		return grant{rebooted: rebooted}, err
	}
	if !plausible(a.external.Addr(), s.gw.Local) || a.external.Port() == 0 || a.lifetime == 0 {
		request.external, request.lifetime = netip.AddrPort{}, 0
		s.request(ctx, &request)
		if a.lifetime == 0 {
			return grant{}, fmt.Errorf("%w: a lifetime of 0", ErrBadAnswer)
		}
		return grant{}, fmt.Errorf("%w: %v", ErrBadAddress, a.external)
	}
	return grant{external: a.external, lifetime: a.lifetime, rebooted: rebooted}, nil
}

func (s *pcpService) remove(ctx context.Context, l *lease) error {
	_, _, err := s.request(ctx, &pcpMapRequest{client: s.gw.Local, nonce: l.nonce, internal: l.port})
	return err
}

func (s *pcpService) request(ctx context.Context, r *pcpMapRequest) (a pcpAnswer, rebooted bool, err error) {
	err = s.ask(ctx, r.append(nil), func(b []byte) (v verdict) {
		a, v = acceptPCP(b, func(a *pcpAnswer) bool { return a.answers(r) })
		return v
	})
	if err != nil {
		return a, false, err
	}
	if a.version == pcpVersion {
		rebooted = s.epoch.pcp(a.epoch, time.Now())
	}
	return a, rebooted, a.err()
}
