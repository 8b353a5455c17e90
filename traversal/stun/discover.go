package stun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/nat"
)

// DiscoverConfig configures Discover. Server is needed.
type DiscoverConfig struct {
	Server netip.AddrPort

	// More are servers at other addresses of the same family. Where Server has one address only, they stand in for the
	// second one in what concerns mapping.
	More []netip.AddrPort

	// AlternatePorts are tried as the second port of a server that does not tell of it, which is one with one address. Default:
	// the next two. The first that answers is taken.
	AlternatePorts []uint16

	// Listen opens a UDP socket on a free port. Default: of this host, for the family of Server.
	Listen func() (net.PacketConn, error)

	// Learned is called when mapping and ports are known, which is before the rest: tests of filtering wait for what does not come.
	// The report says nothing of the rest then. Nil: it is not.
	Learned func(Report)

	Local   []netip.Addr // the host's own addresses; default: as the system has them
	Sockets int          // how many ports are looked at; default 8, at most 64
}

const (
	defaultSockets = 8
	maxSockets     = 64

	// quickTries is how often is asked where silence is an answer: over 1.5 s.
	quickTries = 4

	// maxOthers is how many destinations tell of the ports of one socket beside the first.
	maxOthers = 3
)

// Discover finds out what the NATs and firewalls between this host and a server do, by the tests of RFC 5780 sections 4.3 and
// 4.4 and some more. It takes some 20 times the RTT and 2 s, sends about 60 datagrams, and needs no goroutine or socket when it
// returns. Where mappings depend on the destination it is three more RTTs and datagrams for each of Sockets.
//
// A server with one address can tell neither address-dependent mapping from endpoint-independent, nor address-dependent
// filtering from none; the report then says that it is one or the other. Without any answer the error wraps ErrNoAnswer: UDP is
// blocked, or the server is down.
func Discover(ctx context.Context, cfg DiscoverConfig) (Report, error) {
	d, err := newDiscovery(cfg)
	if err != nil {
		return Report{}, err
	}
	r, err := d.run(ctx)
	d.close()
	if err != nil {
		return Report{}, fmt.Errorf("discover: %w", err)
	}
	return r, nil
}

type discovery struct {
	cfg DiscoverConfig

	mu     sync.Mutex // guards the following
	probes []*probe
}

func newDiscovery(cfg DiscoverConfig) (*discovery, error) {
	cfg.Server = netip.AddrPortFrom(cfg.Server.Addr().Unmap(), cfg.Server.Port())
	if !answerable(cfg.Server) {
		return nil, fmt.Errorf("discover: %v is no address of a server", cfg.Server)
	}
	if cfg.Sockets <= 0 {
		cfg.Sockets = defaultSockets
	}
	cfg.Sockets = min(cfg.Sockets, maxSockets)
	if cfg.AlternatePorts == nil {
		cfg.AlternatePorts = []uint16{cfg.Server.Port() + 1, cfg.Server.Port() + 2}
	}
	if cfg.Listen == nil {
		network := "udp4"
		if cfg.Server.Addr().Is6() {
			network = "udp6"
		}
		cfg.Listen = func() (net.PacketConn, error) { return net.ListenPacket(network, ":0") }
	}
	if cfg.Local == nil {
		host, err := hostnet.Read()
		if err != nil {
			return nil, fmt.Errorf("discover: addresses of this host: %w", err)
		}
		cfg.Local = host.Addrs
	}
	return &discovery{cfg: cfg}, nil
}

// run does what must not disturb itself one after the other (mappings and ports), and then the rest at once.
func (d *discovery) run(ctx context.Context) (r Report, err error) {
	p, err := d.open()
	if err != nil {
		return r, err
	}
	first, err := p.client.Bind(ctx, d.cfg.Server)
	if err != nil {
		return r, err
	}
	r = Report{Server: d.cfg.Server, Mapped: first.Mapped, RTT: first.RTT, NAT: !d.own(first.Mapped, p)}
	other := first.Other
	r.Seen = []Observation{{r.Server, first.Mapped}}
	for _, to := range d.destinations(other) {
		d.observe(ctx, p, &r, to)
	}
	r.TwoAddr = seenFrom(r.Seen, func(a netip.AddrPort) bool { return a.Addr() == other.Addr() })
	r.Mapping = MappingOf(r.Seen)
	if !slices.ContainsFunc(r.Seen, func(o Observation) bool { return !d.own(o.Mapped, p) }) {
		r.Mapping = Range{} // no NAT; a host with several addresses chooses its own by the destination
	}
	r.Ports = d.ports(ctx, &r)
	if step := stepOf(outerPorts(r.Seen)); r.Ports.Step == 0 && r.Mapping.Known() && !r.Ports.Kept() {
		r.Ports.Step = step
	}
	if d.cfg.Learned != nil && ctx.Err() == nil {
		early := r
		early.Filtering = filteringOf(untold, untold)
		d.cfg.Learned(early)
	}

	var both, port asked
	var work sync.WaitGroup
	work.Go(func() {
		if r.TwoAddr {
			both = d.filter(ctx, changeAddr|changePort, seenFrom(r.Seen, func(a netip.AddrPort) bool { return a == other }))
		}
	})
	work.Go(func() {
		port = d.filter(ctx, changePort, seenFrom(r.Seen, func(a netip.AddrPort) bool {
			return a.Addr() == r.Server.Addr() && a.Port() != r.Server.Port()
		}))
	})
	work.Go(func() { r.Hairpin = d.hairpin(ctx) })
	work.Wait()
	r.Filtering = filteringOf(both, port)
	return r, ctx.Err()
}

// own reports whether an address is a probe's before any NAT.
func (d *discovery) own(a netip.AddrPort, p *probe) bool {
	return a.Port() == p.port() && slices.Contains(d.cfg.Local, a.Addr())
}

// credible reports whether an OTHER-ADDRESS may be a server's second one. A server on the internet that tells of a private address
// is behind a NAT itself, or would have us send to somebody's inside.
func credible(other, server netip.AddrPort) bool {
	a, b := other.Addr(), server.Addr()
	return a.IsValid() && a != b && a.Is4() == b.Is4() && other.Port() != server.Port() &&
		a.IsPrivate() == b.IsPrivate() && a.IsLoopback() == b.IsLoopback() && a.IsLinkLocalUnicast() == b.IsLinkLocalUnicast()
}

// Others returns the other destinations of a server that tell, beside itself, how mappings depend on the destination. told is true
// if it names them: of two addresses and two ports the other three, in the order of RFC 5780 section 4.3 and then the one it has no
// use for. Else they are guesses, the next two ports. other is the OTHER-ADDRESS of its answer.
func Others(server, other netip.AddrPort) (list []netip.AddrPort, told bool) {
	if credible(other, server) {
		return []netip.AddrPort{netip.AddrPortFrom(other.Addr(), server.Port()), other, netip.AddrPortFrom(server.Addr(), other.Port())}, true
	}
	for _, port := range []uint16{server.Port() + 1, server.Port() + 2} {
		if port > server.Port() {
			list = append(list, netip.AddrPortFrom(server.Addr(), port))
		}
	}
	return list, false
}

// destinations are what one socket asks after the server itself: where it says so its other addresses and ports; else the other port
// as it is guessed, and other servers.
func (d *discovery) destinations(other netip.AddrPort) (groups [][]netip.AddrPort) {
	s := d.cfg.Server
	if list, told := Others(s, other); told {
		for _, a := range list {
			groups = append(groups, []netip.AddrPort{a})
		}
	} else {
		var guesses []netip.AddrPort
		for _, port := range d.cfg.AlternatePorts {
			if port != 0 && port != s.Port() {
				guesses = append(guesses, netip.AddrPortFrom(s.Addr(), port))
			}
		}
		groups = append(groups, guesses)
	}
	for _, m := range d.cfg.More {
		m = netip.AddrPortFrom(m.Addr().Unmap(), m.Port())
		if answerable(m) && m.Addr().Is4() == s.Addr().Is4() {
			groups = append(groups, []netip.AddrPort{m})
		}
	}
	return groups
}

// observe asks some destinations at once and takes down the first that answers.
func (d *discovery) observe(ctx context.Context, p *probe, r *Report, to []netip.AddrPort) {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	answers := make(chan *Observation)
	for _, a := range to {
		go func() {
			result, err := p.client.do(ctx, &exchange{server: a, tries: quickTries})
			if err != nil {
				answers <- nil
				return
			}
			answers <- &Observation{a, result.Mapped}
		}()
	}
	var first *Observation
	for range to {
		if o := <-answers; o != nil && first == nil {
			first = o
			enough()
		}
	}
	if first != nil {
		r.Seen = append(r.Seen, *first)
	}
}

// ports looks at the outer ports of some sockets, one after the other: at those of their first mappings, and where mappings depend on
// the destination at those of their others too, by which the range shows.
func (d *discovery) ports(ctx context.Context, r *Report) Ports {
	var others []netip.AddrPort
	if r.Mapping.Least > nat.EndpointIndependent {
		for _, o := range r.Seen[1:min(len(r.Seen), 1+maxOthers)] {
			others = append(others, o.To)
		}
	}
	var pairs [][2]uint16
	var made []uint16 // ports of mappings, in the order of their making
	for range d.cfg.Sockets {
		p, err := d.open()
		if err != nil {
			break
		}
		answer, err := p.client.do(ctx, &exchange{server: d.cfg.Server, tries: quickTries})
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			continue
		}
		pairs = append(pairs, [2]uint16{p.port(), answer.Mapped.Port()})
		first := len(made)
		made = append(made, answer.Mapped.Port())
		for _, to := range others {
			answer, err := p.client.do(ctx, &exchange{server: to, tries: quickTries})
			if err == nil && !slices.Contains(made[first:], answer.Mapped.Port()) {
				made = append(made, answer.Mapped.Port())
			}
		}
	}
	return portsOf(pairs, made)
}

// filter asks on a fresh socket for an answer from somewhere else. answersThere says that the server is known to answer from
// there, without which silence means nothing.
func (d *discovery) filter(ctx context.Context, change byte, answersThere bool) asked {
	p, err := d.open()
	if err != nil {
		return untold
	}
	if _, err := p.client.do(ctx, &exchange{server: d.cfg.Server, tries: quickTries}); err != nil {
		return untold
	}
	answer, err := p.client.do(ctx, &exchange{server: d.cfg.Server, change: change, tries: quickTries})
	switch {
	case errors.Is(err, ErrNoAnswer) && answersThere && ctx.Err() == nil:
		return blocked
	case err != nil:
		return untold
	case change&changeAddr != 0 && answer.From.Addr() == d.cfg.Server.Addr(), answer.From.Port() == d.cfg.Server.Port():
		return untold // the server did not do what it was asked for
	}
	return passed
}

// seenFrom reports whether a destination of a kind has answered.
func seenFrom(seen []Observation, is func(netip.AddrPort) bool) bool {
	return slices.ContainsFunc(seen, func(o Observation) bool { return is(o.To) })
}

func outerPorts(seen []Observation) (ports []uint16) {
	for _, o := range seen {
		ports = append(ports, o.Mapped.Port())
	}
	return ports
}

func (d *discovery) open() (*probe, error) {
	c, err := d.cfg.Listen()
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	p := newProbe(c)
	d.mu.Lock()
	d.probes = append(d.probes, p)
	d.mu.Unlock()
	return p, nil
}

func (d *discovery) close() {
	for _, p := range d.probes {
		p.close()
	}
}
