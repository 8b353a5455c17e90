package netcheck

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"culvert.dev/culvert/traversal/portmap"
)

// gateways asks the gateways for a mapping of a fresh socket's port, and deletes it.
func (r *run) gateways(ctx context.Context) []Gateway {
	list := []Gateway{}
	c, err := r.cfg.Listen(false)
	if err != nil { // a host without IPv4 may have gateways for IPv6
		if c, err = r.cfg.Listen(true); err != nil {
			r.note("port mapping: %v", err)
			return list
		}
	}
	defer c.Close()
	port := c.LocalAddr().(*net.UDPAddr).Port
	r.cfg.Progress("asking the gateway for a port mapping")
	ctx, cancel := context.WithTimeout(ctx, portMapTime)
	defer cancel()

	cfg := r.cfg.PortMap
	if cfg.Gateways == nil {
		cfg.Gateways = portmap.SystemGateways
	}
	known, err := cfg.Gateways()
	if err != nil {
		r.note("port mapping: %v", err)
		return list
	}
	if len(known) == 0 {
		return list
	}
	m := portmap.New(cfg)
	m.Map(uint16(port))
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	select {
	case <-m.Gathered():
	case <-ctx.Done():
	}
	services, mappings := m.Status(), m.Mappings()
	deleting, stop := context.WithTimeout(context.WithoutCancel(ctx), deleteTime)
	defer stop()
	if err := m.Close(deleting); err != nil && len(mappings) > 0 {
		r.note("port mapping: the mapping that was made for this test could not be deleted, and ends by itself: %v", err)
	}
	running.Wait()
	for _, g := range services {
		list = append(list, gatewayOf(g, mappings))
	}
	return list
}

func gatewayOf(g portmap.Report, mappings []portmap.Mapping) Gateway {
	out := Gateway{Address: g.Gateway.Addr, Local: g.Gateway.Local, Interface: g.Gateway.Interface, Services: []Service{}}
	for _, s := range g.Services {
		x := Service{Protocol: string(s.Protocol), Found: s.Found, Detail: s.Detail}
		switch {
		case s.Err != nil:
			x.Err = refusal(s.Err)
		case !s.Found:
			x.Err = portmap.ErrNoAnswer.Error()
		}
		if s.Found {
			x.RTT = millis(s.RTT)
		}
		if s.External.IsValid() {
			x.External = s.External.String()
		}
		out.Services = append(out.Services, x)
	}
	for _, m := range mappings {
		if m.Gateway == g.Gateway.Addr && m.Internal.Addr() == g.Gateway.Local {
			out.Grant = &Grant{Protocol: string(m.Protocol), External: m.External, Lifetime: float64(m.Lifetime / time.Second), Usable: !m.DoubleNAT}
		}
	}
	return out
}

// refusal is an error of a service for people, to whom the sockets that it came by mean nothing.
func refusal(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// doubleNAT compares what the gateway says of its outer address with what servers see, for one family.
func doubleNAT(f *Family, gateways []Gateway, v6 bool) {
	if f.NAT == No {
		f.DoubleNAT = No
		return
	}
	for _, g := range gateways {
		if g.Address.Is6() != v6 {
			continue
		}
		outer := g.outer()
		seen := f.Endpoint.Addr()
		switch {
		case outer.IsValid() && scope(outer) != "public":
			f.DoubleNAT, f.DoubleNATWhy = Yes, "the gateway's outer address is "+outer.String()+", which is not one of the internet's"
		case g.Grant != nil && !g.Grant.Usable:
			f.DoubleNAT, f.DoubleNATWhy = Yes, "the gateway sees this host by another address than its own"
		case outer.IsValid() && seen.IsValid() && outer != seen:
			f.DoubleNAT, f.DoubleNATWhy = Yes, "the gateway's outer address is "+outer.String()+", but servers see "+seen.String()
		case outer.IsValid() && outer == seen:
			f.DoubleNAT, f.DoubleNATWhy = No, "the gateway's outer address is the one that servers see"
		default:
			continue
		}
		return
	}
}

// outer is the gateway's outer address as it says; invalid if it does not.
func (g *Gateway) outer() netip.Addr {
	if g.Grant != nil {
		return g.Grant.External.Addr()
	}
	for _, s := range g.Services {
		if a, err := netip.ParseAddr(s.External); err == nil {
			return a
		}
	}
	return netip.Addr{}
}
