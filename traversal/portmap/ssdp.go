package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	ssdpPort    = 1900
	maxLocation = 512 // bytes
	maxFound    = 4   // locations that are looked into at one search
	maxFailures = 8   // of reading, at one try
)

// searchTargets are what gateways answer to. Version 2 devices must answer to version 1 as well, but not all do, and some
// answer to one only.
func searchTargets() []string {
	return []string{"urn:schemas-upnp-org:device:InternetGatewayDevice:2", "urn:schemas-upnp-org:device:InternetGatewayDevice:1"}
}

// searchRequest is an M-SEARCH (UPnP Device Architecture 1.1, section 1.3). MX lets answers to multicast take up to 1 s.
func searchRequest(to netip.AddrPort, target string) []byte {
	host := netip.AddrPortFrom(to.Addr().WithZone(""), to.Port())
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %v\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: %s\r\n\r\n", host, target)
}

// parseSearchAnswer reads LOCATION of an answer to a search. It returns false for what is no answer, and for a LOCATION that
// cannot be used.
func parseSearchAnswer(b []byte) (location, bool) {
	status, rest, _ := strings.Cut(string(b), "\n")
	if f := strings.Fields(status); len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") || f[1] != "200" {
		return location{}, false
	}
	for line := range strings.Lines(rest) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			break // the empty line, or nonsense
		}
		if strings.EqualFold(strings.TrimSpace(name), "LOCATION") {
			return parseLocation(strings.TrimSpace(value))
		}
	}
	return location{}, false
}

// location is where something lies on the gateway.
type location struct {
	host netip.Addr // as it was named; for the record, since the gateway itself is asked
	port uint16
	path string // with the query, escaped
}

// parseLocation reads an absolute URL. Its host is an address: a name would make others say where it leads.
func parseLocation(s string) (l location, ok bool) {
	if len(s) > maxLocation {
		return l, false
	}
	u, err := url.Parse(s)
	if err != nil || !strings.EqualFold(u.Scheme, "http") || u.User != nil || u.Opaque != "" {
		return l, false
	}
	l.host, err = netip.ParseAddr(u.Hostname())
	if err != nil {
		return l, false
	}
	l.host = l.host.Unmap()
	l.port = 80
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return l, false
		}
		l.port = uint16(n)
	}
	l.path = u.RequestURI()
	return l, true
}

// resolve reads a URL that a document at l names: absolute, or relative to l.
func (l location) resolve(ref string) (location, bool) {
	if len(ref) > maxLocation {
		return location{}, false
	}
	base, err := url.Parse("http://" + netip.AddrPortFrom(l.host.WithZone(""), l.port).String() + l.path)
	if err != nil {
		return location{}, false
	}
	u, err := base.Parse(ref)
	if err != nil {
		return location{}, false
	}
	u.Fragment = ""
	return parseLocation(u.String())
}

// search looks for devices of the gateway and calls found for each new one, until that returns true or 1.75 s are over. Both
// the gateway itself is asked and its network, since many gateways answer only one of them.
func (l *link) search(ctx context.Context, found func(location) bool) error {
	c, err := l.cfg.ListenPacket(netip.AddrPortFrom(l.gw.Local, 0))
	if err != nil {
		return fmt.Errorf("search: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	group := netip.AddrFrom4([4]byte{239, 255, 255, 250})
	if l.gw.Addr.Is6() {
		group = netip.MustParseAddr("ff02::c").WithZone(l.gw.Interface)
	}
	seen := map[location]bool{}
	wait := firstWait
	for range allTries {
		for _, to := range []netip.Addr{l.gw.Addr, group} {
			for _, target := range searchTargets() {
				at := netip.AddrPortFrom(to, ssdpPort)
				l.sent.Add(1)
				c.WriteTo(searchRequest(at, target), net.UDPAddrFromAddrPort(at)) // a network without multicast is no obstacle
			}
		}
		c.SetReadDeadline(time.Now().Add(wait))
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.collect(c, seen, found) {
			return nil
		}
		wait *= 2
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w to %d searches", ErrNoAnswer, allTries)
}

// collect reads answers until found is content, or time is over.
func (l *link) collect(c net.PacketConn, seen map[location]bool, found func(location) bool) bool {
	buf := make([]byte, maxDatagram)
	for failures := 0; ; {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			// Anything but the end of time is an ICMP error about one of the requests, or a socket that is broken for good.
			if failures++; errors.Is(err, os.ErrDeadlineExceeded) || failures > maxFailures {
				return false
			}
			continue
		}
		if a, ok := from.(*net.UDPAddr); !ok || !l.mayAnswer(a.AddrPort().Addr().Unmap()) {
			l.otherSource.Add(1)
			continue
		}
		at, ok := parseSearchAnswer(buf[:n])
		if !ok {
			l.count(malformed)
			continue
		}
		l.count(taken)
		if at.host.WithZone("") != l.gw.Addr.WithZone("") {
			l.otherHost.Add(1)
		}
		at.host = l.gw.Addr
		if !seen[at] && len(seen) < maxFound {
			seen[at] = true
			if found(at) {
				return true
			}
		}
	}
}

// mayAnswer reports whether a search answer's source can be the gateway. Over IPv4 that is its one address. Over IPv6 a gateway
// is known by its link-local address but answers from any that it has on the network; that others there could too is harmless,
// since nothing of an answer is used but a port and a path on the gateway.
func (l *link) mayAnswer(from netip.Addr) bool {
	if from.WithZone("") == l.gw.Addr.WithZone("") {
		return true
	}
	const subnet = 64
	return from.Is6() && l.gw.Addr.Is6() && (from.IsLinkLocalUnicast() || netip.PrefixFrom(l.gw.Local, subnet).Contains(from.WithZone("")))
}
