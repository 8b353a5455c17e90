package portmap

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// pmpService is NAT-PMP at a gateway.
type pmpService struct {
	*link
	epoch *epoch
}

// address asks for the external address, which may be implausible.
func (s *pmpService) address(ctx context.Context) (a netip.Addr, rebooted bool, err error) {
	answer, rebooted, err := s.request(ctx, pmpAddressRequest(), func(a *pmpAnswer) bool { return a.opcode == pmpAddress })
	return answer.address, rebooted, err
}

func (s *pmpService) add(ctx context.Context, l *lease) (grant, error) {
	address, rebooted, err := s.address(ctx)
	if err != nil {
		return grant{rebooted: rebooted}, err
	}
	if !plausible(address, s.gw.Local) {
		return grant{rebooted: rebooted}, fmt.Errorf("%w: %v", ErrBadAddress, address)
	}
	port := l.suggestion().Port()
	if port == 0 {
		port = l.port
	}
	a, again, err := s.request(ctx, pmpMapRequest(l.port, port, s.cfg.Lifetime), func(a *pmpAnswer) bool {
		return a.opcode == pmpMapUDP && (a.code != 0 || a.internal == l.port)
	})
	if err == nil && (a.external == 0 || a.lifetime == 0) {
		err = fmt.Errorf("%w: port %d for %v", ErrBadAnswer, a.external, a.lifetime)
	}
	if err != nil {
		return grant{rebooted: rebooted || again}, err
	}
	return grant{external: netip.AddrPortFrom(address, a.external), lifetime: a.lifetime, rebooted: rebooted || again}, nil
}

func (s *pmpService) remove(ctx context.Context, l *lease) error {
	_, _, err := s.request(ctx, pmpMapRequest(l.port, 0, 0), func(a *pmpAnswer) bool {
		return a.opcode == pmpMapUDP && (a.code != 0 || a.internal == l.port)
	})
	return err
}

func (s *pmpService) request(ctx context.Context, request []byte, wanted func(*pmpAnswer) bool) (a pmpAnswer, rebooted bool, err error) {
	err = s.ask(ctx, request, func(b []byte) verdict {
		var ok bool
		a, ok = parsePMP(b)
		switch {
		case !ok:
			return malformed
		case a.version == pmpVersion && !wanted(&a):
			return mismatch
		}
		return taken
	})
	switch {
	case err != nil:
		return a, false, err
	case a.version != pmpVersion:
		return a, false, &ResultError{Protocol: NATPMP, Code: pmpUnsupportedVersion}
	}
	rebooted = s.epoch.pmp(a.epoch, time.Now())
	if a.code != 0 {
		return a, rebooted, &ResultError{Protocol: NATPMP, Code: a.code}
	}
	return a, rebooted, nil
}
