package portmap

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"time"
)

const (
	maxPorts     = 4 // external ports that are tried
	lowestRandom = 10000
	highestPort  = 65535

	maxPinhole    = 24 * time.Hour  // WANIPv6FirewallControl section 2.2.4
	searchTimeout = 6 * time.Second // with looking at what was found

	program = "culvert" // how mappings are named in a gateway's list
)

// upnpService is a service of an internet gateway device: a WANIPConnection, a WANPPPConnection or, for IPv6, a
// WANIPv6FirewallControl.
type upnpService struct {
	*link
	igdService
	device    description
	permanent bool // leases are not supported: 725 has been seen, or 402
}

// findUPnP searches for the gateway's device and takes the first of its services that knows a plausible external address, or
// the first at all if none does; then err says why that one does not, and the service is not nil.
func (l *link) findUPnP(ctx context.Context) (s *upnpService, external netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	var why error
	err = l.search(ctx, func(at location) bool {
		var body []byte
		if body, why = l.get(ctx, at); why != nil {
			return false
		}
		var d description
		if d, why = parseDescription(body, at); why != nil {
			l.count(malformed)
			return false
		}
		s, external, why = l.choose(ctx, d)
		return s != nil
	})
	if s != nil {
		return s, external, why
	}
	if why != nil {
		err = why
	}
	return nil, netip.Addr{}, err
}

// choose takes one of a device's services.
func (l *link) choose(ctx context.Context, d description) (first *upnpService, external netip.Addr, firstErr error) {
	for _, candidate := range d.services {
		if l.gw.Addr.Is6() != (rank(candidate.kind) == rank(typeFirewall)) {
			continue
		}
		if candidate.control.host.WithZone("") != l.gw.Addr.WithZone("") {
			l.otherHost.Add(1)
		}
		s := &upnpService{link: l, igdService: candidate, device: d}
		external, err := s.external(ctx)
		if err == nil {
			return s, external, nil
		}
		if first == nil {
			first, firstErr = s, err
		}
	}
	if first == nil {
		return nil, netip.Addr{}, fmt.Errorf("%w: the device has no service for it", ErrUnsupported)
	}
	return first, netip.Addr{}, firstErr
}

// external asks for the external address; a firewall has the host's own, if it admits pinholes.
func (s *upnpService) external(ctx context.Context) (netip.Addr, error) {
	if s.gw.Addr.Is6() {
		status, err := s.call(ctx, s.igdService, "GetFirewallStatus")
		if err == nil && status["FirewallEnabled"] == "1" && status["InboundPinholeAllowed"] == "0" {
			err = &ResultError{Protocol: UPnP, Code: 703}
		}
		return s.gw.Local, err
	}
	values, err := s.call(ctx, s.igdService, "GetExternalIPAddress")
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(values["NewExternalIPAddress"])
	if err != nil || !plausible(a, s.gw.Local) {
		return netip.Addr{}, fmt.Errorf("%w: %q", ErrBadAddress, printable(values["NewExternalIPAddress"], 48))
	}
	return a, nil
}

func (s *upnpService) add(ctx context.Context, l *lease) (grant, error) {
	if s.gw.Addr.Is6() {
		return s.addPinhole(ctx, l)
	}
	address, err := s.external(ctx)
	if err != nil {
		return grant{}, err
	}
	port := l.suggestion().Port()
	if port == 0 {
		port = l.port
	}
	for range maxPorts {
		var given uint16
		var lifetime time.Duration
		given, lifetime, err = s.addPort(ctx, l, port)
		switch code := resultCode(err); {
		case err == nil:
			return grant{external: netip.AddrPortFrom(address, given), lifetime: lifetime}, nil
		case code == upnpSamePorts && port != l.port:
			port = l.port
		case code == upnpConflict || code == upnpConflictOther:
			port = uint16(lowestRandom + rand.IntN(highestPort-lowestRandom+1))
		default:
			return grant{}, err
		}
	}
	return grant{}, err
}

// addPort asks for one external port. Version 2 may give another one, at the first time; a port that the lease has already is
// asked for as version 1 does, which renews it.
func (s *upnpService) addPort(ctx context.Context, l *lease, port uint16) (uint16, time.Duration, error) {
	for {
		lifetime := s.cfg.Lifetime
		if s.permanent {
			lifetime = 0
		}
		args := []argument{
			{"NewRemoteHost", ""}, {"NewExternalPort", decimal(port)}, {"NewProtocol", "UDP"}, {"NewInternalPort", decimal(l.port)},
			{"NewInternalClient", s.gw.Local.String()}, {"NewEnabled", "1"},
			{"NewPortMappingDescription", program}, {"NewLeaseDuration", strconv.Itoa(int(seconds(lifetime)))},
		}
		if s.version() >= 2 && l.by != UPnP {
			values, err := s.call(ctx, s.igdService, "AddAnyPortMapping", args...)
			if err == nil {
				reserved, err := parsePort(values["NewReservedPort"])
				return reserved, lifetime, err
			}
			if code := resultCode(err); code == 0 || code == upnpNotAuthorized || code == upnpNoPortMapsLeft {
				return 0, 0, err // anything else may be a half-done version 2
			}
		}
		_, err := s.call(ctx, s.igdService, "AddPortMapping", args...)
		if code := resultCode(err); (code == upnpOnlyPermanent || code == upnpInvalidArgs) && !s.permanent {
			s.permanent = true
			continue
		}
		return port, lifetime, err
	}
}

func (s *upnpService) addPinhole(ctx context.Context, l *lease) (grant, error) {
	lifetime := min(s.cfg.Lifetime, maxPinhole)
	g := grant{external: netip.AddrPortFrom(s.gw.Local, l.port), lifetime: lifetime, pinhole: l.held.pinhole}
	lasting := strconv.Itoa(int(seconds(lifetime)))
	if g.pinhole != "" && l.by == UPnP {
		_, err := s.call(ctx, s.igdService, "UpdatePinhole", argument{"UniqueID", g.pinhole}, argument{"NewLeaseTime", lasting})
		if err == nil || resultCode(err) == 0 {
			return g, err
		}
		g.rebooted = resultCode(err) == upnpNoSuchPinhole
	}
	values, err := s.call(ctx, s.igdService, "AddPinhole",
		argument{"RemoteHost", ""}, argument{"RemotePort", "0"}, argument{"InternalClient", s.gw.Local.String()},
		argument{"InternalPort", decimal(l.port)}, argument{"Protocol", strconv.Itoa(protoUDP)}, argument{"LeaseTime", lasting})
	if err != nil {
		return grant{rebooted: g.rebooted}, err
	}
	id, err := strconv.ParseUint(values["UniqueID"], 10, 16)
	g.pinhole = decimal(uint16(id))
	if err != nil {
		return grant{}, fmt.Errorf("AddPinhole: %w: UniqueID %q", ErrBadAnswer, printable(values["UniqueID"], 16))
	}
	return g, nil
}

func (s *upnpService) remove(ctx context.Context, l *lease) error {
	var err error
	if s.gw.Addr.Is6() {
		_, err = s.call(ctx, s.igdService, "DeletePinhole", argument{"UniqueID", l.held.pinhole})
	} else {
		_, err = s.call(ctx, s.igdService, "DeletePortMapping", argument{"NewRemoteHost", ""},
			argument{"NewExternalPort", decimal(l.held.external.Port())}, argument{"NewProtocol", "UDP"})
	}
	if code := resultCode(err); code == upnpNoSuchMapping || code == upnpNoSuchPinhole {
		return nil // somebody was faster
	}
	return err
}

func decimal(port uint16) string { return strconv.Itoa(int(port)) }

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%w: %q is no port", ErrBadAnswer, printable(s, 16))
	}
	return uint16(n), nil
}
